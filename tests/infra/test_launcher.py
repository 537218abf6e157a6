"""infra/ray: the cluster launcher's files, by the validation of the installed Ray and by the shell that will run their commands."""

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from infra_files import INFRA, ROOT, documents, locked, options_in, ray_start_options

FILES = ["hosts", "aws"]
COMMANDS = [
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
]


def _written(name: str) -> dict[str, Any]:
    (document,) = documents(f"ray/{name}.yaml")
    return document


def _prepared(written: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` makes it, defaults filled in; validated."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(written))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_it(name: str) -> None:
    assert _prepared(_written(name))["cluster_name"] == f"crossmodal-{name}"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("key", ["setup_command", "filemounts", "idle_timeout"])
def test_a_misspelt_key_is_found(name: str, key: str) -> None:
    import jsonschema

    with pytest.raises(jsonschema.ValidationError, match=key):
        _prepared({**_written(name), key: []})


@pytest.mark.parametrize("name", FILES)
def test_every_command_is_shell(name: str) -> None:
    prepared = _prepared(_written(name))
    for key in COMMANDS:
        for command in prepared[key]:
            # Ray runs each as `({command})` in bash.
            done = subprocess.run(["bash", "-n", "-c", f"({command})"], capture_output=True, text=True)
            assert done.returncode == 0, (key, done.stderr)


@pytest.mark.parametrize("name", FILES)
def test_what_is_sent_is_here_once_and_holds_the_lock(name: str) -> None:
    written = _written(name)
    assert written["file_mounts_sync_continuously"] is False
    local = set(written["file_mounts"].values())
    assert local == {"requirements.lock", "~/.ray/auth_token"}
    assert (ROOT / "requirements.lock").is_file(), "relative to where `ray up` is typed"
    (sync,) = [command for command in written["setup_commands"] if "pip sync" in command]
    (sent,) = [remote for remote, source in written["file_mounts"].items() if source == "requirements.lock"]
    assert sync.split()[-1] == sent


@pytest.mark.parametrize("name", FILES)
def test_nodes_ask_for_a_token_and_the_dashboard_stays_on_loopback(name: str, tmp_path: Path) -> None:
    from ray.autoscaler._private.command_runner import _with_interactive

    written = _written(name)
    (writes,) = [command for command in written["setup_commands"] if "cat >~/crossmodal/environment" in command]
    (appends,) = [command for command in written["setup_commands"] if ">>~/.bashrc" in command]
    (tmp_path / "crossmodal").mkdir()
    (tmp_path / ".bashrc").touch()
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    for command in (writes, appends, appends):
        subprocess.run(
            " ".join(_with_interactive(command)), shell=True, env=home, check=True, stderr=subprocess.DEVNULL
        )
    assert (tmp_path / ".bashrc").read_text() == "source ~/crossmodal/environment\n", "once"
    ask = " ".join(_with_interactive("echo $RAY_AUTH_MODE $PIPELINES_HOME $PYTHONHASHSEED ${PATH%%:*}"))
    said = subprocess.run(ask, shell=True, env=home, check=True, capture_output=True, text=True).stdout.split()
    assert said == ["token", "/shared/runs", "0", f"{tmp_path}/crossmodal/venv/bin"]
    for command in written["head_start_ray_commands"] + written["worker_start_ray_commands"]:
        assert command.startswith("source ~/crossmodal/environment && ")
    assert "--dashboard-host=127.0.0.1" in written["head_start_ray_commands"][-1]


@pytest.mark.parametrize("name", FILES)
def test_ray_starts_with_options_that_it_has(name: str) -> None:
    written = _written(name)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        *_, start = written[key]
        assert "ray start" in start
        assert options_in(start) <= ray_start_options()
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in written["head_start_ray_commands"][-1]


@pytest.mark.parametrize("name", FILES)
def test_the_cluster_grows_and_shrinks(name: str) -> None:
    prepared = _prepared(_written(name))
    workers = [kind for key, kind in prepared["available_node_types"].items() if key != "head"]
    assert all(kind["min_workers"] < kind["max_workers"] for kind in workers)
    assert prepared["max_workers"] >= max(kind["max_workers"] for kind in workers)
    assert prepared["idle_timeout_minutes"] > 0


def test_hosts_are_documentation_addresses_until_filled_in() -> None:
    provider = _written("hosts")["provider"]
    addresses = [provider["head_ip"], *provider["worker_ips"]]
    assert all(address.startswith("192.0.2.") for address in addresses)
    assert _prepared(_written("hosts"))["max_workers"] == len(provider["worker_ips"])


def test_the_cloud_has_spot_workers_and_a_head_that_is_not_one() -> None:
    kinds = _written("aws")["available_node_types"]
    market = {
        name: kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType") for name, kind in kinds.items()
    }
    assert market == {"head": None, "gpu_spot": "spot", "gpu_on_demand": None}
    assert kinds["head"]["resources"] == {"CPU": 0}, "no task runs on the head"
    # Ray's own default image is Ubuntu 18.04, whose C library torch does not run on.
    assert all(kind["node_config"]["ImageId"].startswith("ami-") for kind in kinds.values())


def test_the_clouds_client_is_the_one_that_was_locked_for_the_tracking_server() -> None:
    (install,) = _written("aws")["head_setup_commands"]
    lock = INFRA / "docker" / "mlflow.lock"
    pinned = dict(re.findall(r"(\S+)==(\S+)", install))
    assert pinned == {name: locked(name, lock) for name in ("boto3", "botocore", "jmespath", "s3transfer")}
    assert "--no-deps" in install, "nothing of requirements.lock is replaced"
