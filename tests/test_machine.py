"""Cores and memory as a container allows them, in both versions of control groups."""

import os
import platform

import pytest
import torch

from prrfl import machine


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write a made-up machine of 8 GB and 8 cores: its process's groups, and what limits them."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))

    def write(groups, limits):
        for name, text in {
            "proc/meminfo": "MemTotal:       9000000 kB\nMemAvailable:   8000000 kB\n",
            "proc/self/cgroup": groups,
            **{f"cgroup/{name}": text for name, text in limits.items()},
        }.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return write


V1 = "9:name=systemd:/\n4:memory:/box/inner\n2:cpu,cpuacct:/box/inner\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "limits", "cores"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "max 100000"}, 8),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),  # half a core is still one that can be kept busy
        ("0::/box/inner\n", {"box/cpu.max": "300000 100000", "box/inner/cpu.max": "max 100000"}, 3),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        (V1, {"cpu/box/cpu.cfs_quota_us": "400000", "cpu/box/cpu.cfs_period_us": "100000"}, 4),
        ("0::/not/seen/from/here\n", {"cpu.max": "200000 100000"}, 2),  # a container's own view
    ],
)
def test_cores(files, groups, limits, cores):
    files(groups, limits)
    assert machine.usable_cores() == cores


@pytest.mark.parametrize(
    ("groups", "limits", "memory"),
    [
        ("0::/\n", {}, 8_192_000_000),
        ("0::/\n", {"memory.max": "max", "memory.current": "5"}, 8_192_000_000),
        ("0::/\n", {"memory.max": "1000", "memory.current": "300"}, 700),
        (
            "0::/\n",
            {"memory.max": "1000", "memory.current": "300", "memory.stat": "anon 9\ninactive_file 100"},
            800,
        ),
        ("0::/a/b\n", {"a/memory.max": "1000", "a/memory.current": "1200"}, 0),
        (
            V1,
            {
                "memory/box/memory.limit_in_bytes": "1000",
                "memory/box/memory.usage_in_bytes": "400",
                "memory/box/memory.stat": "inactive_file 7\ntotal_inactive_file 150",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "1",
            },
            750,
        ),
    ],
)
def test_memory(files, groups, limits, memory):
    files(groups, limits)
    assert machine.available_memory() == memory


def test_system_is_what_the_platform_module_says():
    assert machine.system() == platform.platform()


def test_on_a_gpu_float32_is_float32_and_the_switches_are_put_back():
    def switches():
        cudnn = torch.backends.cudnn
        return cudnn.allow_tf32, cudnn.deterministic, torch.get_float32_matmul_precision()

    before = switches()
    with machine.arithmetic("cuda", "float32"):
        assert switches() == (False, True, "highest")
    with machine.arithmetic("cuda", "bfloat16"):
        assert switches() == (True, True, "high")
    with pytest.raises(ZeroDivisionError), machine.arithmetic("cuda:1", "bfloat16"):
        raise ZeroDivisionError
    assert switches() == before
    with machine.arithmetic("cpu", "bfloat16"):
        assert switches() == before


def test_a_gpu_is_asked_about_in_a_child_process(monkeypatch):
    # A process that has used CUDA cannot be forked, and workers are forked.
    asked_by = []
    monkeypatch.setattr(machine.torch.version, "cuda", "13.0")
    monkeypatch.setattr(machine.torch.cuda, "is_initialized", lambda: False)

    def facts(device):
        asked_by.append(device)  # in the child: this process does not see it
        return machine.GPU(f"{device} of {os.getppid()}", (6, 8), bfloat16=True)

    monkeypatch.setattr(machine, "_facts", facts)
    machine.gpu.cache_clear()
    try:
        assert machine.gpu("cuda:1") == machine.GPU(f"cuda:1 of {os.getpid()}", (6, 8), bfloat16=True)
        assert asked_by == []
        monkeypatch.setattr(machine, "_facts", lambda device: os._exit(1))
        assert machine.gpu("cuda:2") is None
    finally:
        machine.gpu.cache_clear()
