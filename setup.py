"""Packages of the wheel; all else stands in pyproject.toml. The configs come along, for --config jaxkd:mmpkd_cxr."""
from setuptools import find_namespace_packages, setup

CONFIGS = [f'jaxkd.configs.{name}' for name in find_namespace_packages('configs')]

setup(packages=[*find_namespace_packages(include=['jaxkd', 'jaxkd.*']), 'jaxkd.configs', *CONFIGS],
      package_dir={'jaxkd.configs': 'configs'})
