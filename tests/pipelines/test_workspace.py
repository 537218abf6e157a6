"""Where a checkout keeps its scratch root and its tracking store."""

from repositories import git, make_repository

from pipelines.tracking.runs import tracking_uri
from pipelines.workspace import Workspace


def test_linked_worktrees_and_experiments_that_dvc_runs_elsewhere_share_those_of_their_checkout(tmp_path, monkeypatch):
    for name in ("PIPELINES_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    main, linked = tmp_path / "main", tmp_path / "linked"
    main.mkdir()
    (main / "params.yaml").touch()
    git(make_repository(main), "worktree", "add", "--quiet", "-b", "other", str(linked))
    # `dvc exp run --temp` and `--queue`: a new repository, which DVC deletes in the end.
    experiments = [checkout / ".dvc" / "tmp" / "exps" / "tmp1234" for checkout in (main, linked)]
    for experiment in experiments:
        experiment.mkdir(parents=True)
        git(experiment, "init", "--quiet")
    for root in (main, linked, *experiments, experiments[0] / "project"):
        root.mkdir(exist_ok=True)
        workspace = Workspace.at(root)
        assert (workspace.root, workspace.home) == (root, main / ".runs")
        assert tracking_uri(workspace) == f"sqlite:///{main / 'mlflow.db'}"
