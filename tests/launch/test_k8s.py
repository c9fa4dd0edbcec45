"""The Kubernetes engine: manifests of JobSets by structure, and their order with a kubectl that notes its arguments."""
import os
import pathlib
import re
import shutil
import subprocess

import pytest
import yaml

from launch import manifest, state
from launch import profile as profiles
from launch.engines import k8s
from tests.fixtures import tiny_sweep

ROOT = pathlib.Path(__file__).parents[2]
SITE = k8s.Profile(image='i:1', queue='lab', claim='disk', folder='/sweeps/x')
# What the schemas of JobSet v1alpha2, Job v1 and Pod v1 know of the keys that are used, with their types.
SCHEMA = {
    'apiVersion': str, 'kind': str, 'metadata': {'name': str, 'namespace': str, 'labels': 'map', 'annotations': 'map'},
    'spec': {
        'failurePolicy': {'maxRestarts': int, 'rules': [{'name': str, 'action': str, 'onJobFailureReasons': [str]}]},
        'replicatedJobs': [{'name': str, 'replicas': int, 'template': {'spec': {
            'backoffLimit': int, 'completions': int, 'parallelism': int, 'completionMode': str,
            'podFailurePolicy': {'rules': [{'action': str, 'onExitCodes': {
                'containerName': str, 'operator': str, 'values': [int]}}]},
            'template': {'spec': {
                'restartPolicy': str, 'terminationGracePeriodSeconds': int, 'nodeSelector': 'map',
                'containers': [{'name': str, 'image': str, 'command': [str], 'env': 'any', 'resources': {
                    'limits': 'any', 'requests': 'any'}, 'volumeMounts': [{'name': str, 'mountPath': str}]}],
                'volumes': [{'name': str, 'persistentVolumeClaim': {'claimName': str}}]}}}}}]}}


def check(node, schema, path=''):
    if schema == 'any':
        return
    if schema == 'map':
        assert all(isinstance(k, str) and isinstance(v, str) for k, v in node.items()), path
    elif isinstance(schema, dict):
        assert isinstance(node, dict) and not {*node} - {*schema}, f'{path}: {set(node) - set(schema)}'
        for key, value in node.items():
            check(value, schema[key], f'{path}.{key}')
    elif isinstance(schema, list):
        for i, value in enumerate(node):
            check(value, schema[0], f'{path}[{i}]')
    else:
        assert type(node) is schema, path


@pytest.fixture
def jobs(tmp_path):
    return manifest.write(tmp_path / 'sweep', 'x.py', manifest.plan(tiny_sweep.get_sweep()))


def read_back(jobs, site=SITE):
    texts = k8s.documents(jobs, site)
    return texts, [list(yaml.safe_load_all(texts[f'{i}.yaml'])) for i in range(len(texts) - 1)]


def test_there_is_a_valid_jobset_for_each_job(jobs):
    _, levels = read_back(jobs)
    assert [len(level) for level in levels] == [4, 4]
    everything = [document for level in levels for document in level]
    names = [document['metadata']['name'] for document in everything]
    for i, level in enumerate(levels):
        for document in level:
            check(document, SCHEMA)
            assert (document['apiVersion'], document['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
            assert document['metadata']['labels'] == {
                'kueue.x-k8s.io/queue-name': 'lab', 'jaxkd-sweep': k8s._sweep(SITE), 'jaxkd-level': str(i)}
    assert len(set(names)) == 8 and all(re.fullmatch('[a-z0-9]([-a-z0-9]{0,39}[a-z0-9])?', name) for name in names)
    assert [document['metadata']['annotations']['jaxkd/job'] for document in everything] == [job.name for job in jobs]
    pod = everything[0]['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
    assert pod['containers'][0]['command'] == ['python', '-m', 'launch.job', '/sweeps/x', jobs[0].name]
    assert pod['containers'][0]['resources']['limits'] == {'google.com/tpu': 4} and pod['restartPolicy'] == 'Never'


def test_an_interrupted_run_is_restarted_and_a_wrong_config_is_not(jobs):
    _, levels = read_back(jobs)
    spec = levels[0][0]['spec']
    rule, = spec['replicatedJobs'][0]['template']['spec']['podFailurePolicy']['rules']
    assert rule['action'] == 'FailJob' and {2, 65, 66, 70, 74} == set(rule['onExitCodes']['values'])
    assert spec['failurePolicy'] == {'maxRestarts': 10, 'rules': [
        {'name': 'lasting', 'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}]}


def test_pods_of_a_run_on_gpus_find_each_other(jobs):
    site = k8s.Profile('i', 'lab', 'disk', '/x', hosts=2, resource='nvidia.com/gpu', count=8)
    _, levels = read_back(jobs, site)
    document = levels[1][0]
    name, template = document['metadata']['name'], document['spec']['replicatedJobs'][0]['template']['spec']
    assert (template['completions'], template['parallelism'], template['completionMode']) == (2, 2, 'Indexed')
    container, = template['template']['spec']['containers']
    environment = {e['name']: e.get('value', e.get('valueFrom')) for e in container['env']}
    assert environment['JAX_COORDINATOR_ADDRESS'] == f'{name}-run-0-0.{name}:8476'
    assert environment['JAX_NUM_PROCESSES'] == '2' and 'job-completion-index' in str(environment['JAX_PROCESS_ID'])
    _, levels = read_back(jobs, k8s.Profile('i', 'lab', 'disk', '/x', hosts=4))
    assert 'JAX_NUM_PROCESSES' not in str(levels[1][0]), 'a TPU says so itself'


def test_names_and_values_of_yaml_are_no_code(tmp_path):
    member = manifest.Job('runs/yes', 'd', {}, 'x.py', {})
    site = k8s.Profile('!!python/object:os.system', 'no', 'on', '/a: b', environment={'X': '1', 'Y': 'null'})
    texts, ((document,),) = read_back([member], site)
    check(document, SCHEMA)
    pod = document['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
    assert pod['containers'][0]['image'] == '!!python/object:os.system'


@pytest.mark.parametrize('outcome, code, applied', [('Completed', 0, ['0.yaml', '1.yaml']), ('Failed', 1, ['0.yaml'])])
def test_members_are_submitted_when_the_shared_stages_are_done(jobs, tmp_path, monkeypatch, outcome, code, applied):
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'kubectl').write_text(f'''#!/bin/bash
echo "$*" >> {tmp_path}/calls.txt
count=$(grep -c range {tmp_path}/calls.txt)
case "$*" in
  *range*) [ "$count" -lt 3 ] && echo "[]" || echo "[{outcome}]" ;;
  get*) echo "Completed {outcome}" ;;
esac
''')
    (tmp_path / 'bin' / 'kubectl').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
    (tmp_path / 'site.toml').write_text('image = "i"\nqueue = "q"\nclaim = "c"\nfolder = "/x"\npoll = 0\n')
    assert k8s.run(tmp_path / 'sweep', jobs, str(tmp_path / 'site.toml')) == code
    calls = (tmp_path / 'calls.txt').read_text().splitlines()
    assert [call.split()[2] for call in calls if call.startswith('apply')] == applied
    assert sum('range' in call for call in calls) == 3


def test_what_is_finished_is_left_out(jobs, tmp_path):
    for job in jobs[:4]:
        state.begin(tmp_path / 'sweep', job)
        state.end(tmp_path / 'sweep', job, 0, '', {})
    todo = [job for job in jobs if state.of(tmp_path / 'sweep', job).status != 'finished']
    texts, levels = read_back(todo)
    assert len(levels) == 1 and len(levels[0]) == 4 and 'wait_for jaxkd-level' not in texts['submit.sh']


def test_the_script_is_clean(jobs):
    text = k8s.documents(jobs, profiles.read(ROOT / 'configs/sites/k8s.toml', k8s.Profile))['submit.sh']
    assert subprocess.run(['bash', '-n'], input=text, text=True).returncode == 0
    if shutil.which('shellcheck'):
        assert subprocess.run(['shellcheck', '-'], input=text, text=True).returncode == 0
