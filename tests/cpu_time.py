"""CPU-seconds (user + system, with child processes) of each test and each tier, after every run.

What a clock says depends on what else the machine does; CPU-seconds hardly. `--most-cpu-minutes=N`
fails a run that took more. A tier is a folder of tests/.
"""

import json
import os
from collections import defaultdict

import commands
import pytest

DEAREST = 10


def spent():
    """CPU-seconds of this process and of its children that have ended."""
    return sum(os.times()[:4]) + commands.cpu


def pytest_addoption(parser):
    parser.addoption(
        '--most-cpu-minutes', type=float, help='fail if the run takes more CPU time (user + system)'
    )
    parser.addoption('--cpu-json', help='write the CPU-seconds of every test to this file')


def pytest_configure(config):
    if not hasattr(config, 'workerinput'):
        config.pluginmanager.register(Report(config), 'cpu report')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.config.cpu_before = spent()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == 'teardown':
        report.cpu = spent() - item.config.cpu_before
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    commands.stop()
    if hasattr(session.config, 'workeroutput'):
        session.config.workeroutput['cpu'] = spent()


class Report:
    """Of the process that starts the workers, or the only one."""

    def __init__(self, config):
        self.config = config
        self.tests = defaultdict(float)  # by their ids
        self.workers = 0.0

    def pytest_runtest_logreport(self, report):
        if report.when == 'teardown':
            self.tests[report.nodeid] += report.cpu

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error):
        self.workers += getattr(node, 'workeroutput', {}).get('cpu', 0.0)

    def tiers(self):
        """{folder: (CPU-seconds, number of tests)}."""
        seconds, count = defaultdict(float), defaultdict(int)
        for name, cpu in self.tests.items():
            folder = name.partition('::')[0].split('/')[1]
            seconds[folder] += cpu
            count[folder] += 1
        return {folder: (seconds[folder], count[folder]) for folder in seconds}

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session):
        yield
        own, children = sum(os.times()[:2]), sum(os.times()[2:4])
        self.total = own + max(children, self.workers)  # whether they have been waited for or not
        most = self.config.getoption('most_cpu_minutes')
        self.over = most is not None and self.total > 60 * most
        if self.over and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if path := self.config.getoption('cpu_json'):
            with open(path, 'w') as file:
                json.dump(dict(self.tests), file, indent=1)

    def pytest_terminal_summary(self, terminalreporter):
        write = terminalreporter.write_line
        dearest = sorted(self.tests.items(), key=lambda pair: -pair[1])[:DEAREST]
        terminalreporter.section(f'{self.total / 60:.1f} CPU-minutes')
        for folder, (seconds, count) in self.tiers().items():
            write(f'{seconds:7.1f} s  {folder}, {count:,} tests')
        rest = self.total - sum(self.tests.values())
        write(f'{rest:7.1f} s  starting, imports, collecting')
        write(f'the {len(dearest)} dearest tests:')
        for name, seconds in dearest:
            write(f'{seconds:7.1f} s  {name.removeprefix("tests/")}')
        if self.over:
            most = self.config.getoption('most_cpu_minutes')
            write(f'FAILED: more than {most:g} CPU-minutes; see --most-cpu-minutes', red=True)
