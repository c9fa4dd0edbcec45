"""Packages of the wheel; all else stands in pyproject.toml. The configs come along, for --config jaxkd:mmpkd_cxr."""
from setuptools import find_namespace_packages, setup

CONFIGS = [f'jaxkd.configs.{name}' for name in find_namespace_packages('configs')]
PACKAGES = find_namespace_packages(include=['jaxkd', 'jaxkd.*', 'launch', 'launch.*'])

setup(packages=[*PACKAGES, 'jaxkd.configs', *CONFIGS],
      package_dir={'jaxkd.configs': 'configs'})
