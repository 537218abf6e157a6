import csv
import json
import re
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchvision.io import encode_png

from components.errors import DataError
from components.evaluation.comparison import alignment_differences, retrieval_differences
from components.files import file_digest
from components.gadms.embedding import embed_images
from components.gadms.model import WEIGHTS_FILE, DualEncoder
from components.gadms.tokenizer import CaptionTokenizer
from components.persons.shards import CaptionRow, DatasetWriter, PersonDataset
from components.search.index import GalleryIndex
from pipelines.engine.context import StageContext
from pipelines.graph import GADMS_ARMS, STAGES, TACA_ARMS, all_stages, find, runs_of
from pipelines.params import Parameters, load
from pipelines.reporting import diagram, page
from pipelines.reporting.charts import line_chart, nice_ticks
from pipelines.reporting.formats import ARM_NAMES, environment
from pipelines.reporting.runs import look_up
from pipelines.scratch.folder import Scratch
from pipelines.scratch.manifest import Manifest
from pipelines.stages import report
from pipelines.stages.parts import report_checks
from pipelines.stages.parts.report_pictures import select_spread
from pipelines.workspace import Workspace

ROOT = Path(__file__).resolve().parents[3]
COLOURS = ("red", "green", "blue")
PROMPTS = 6


def picture(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    return bytes(encode_png(torch.from_numpy(random.integers(0, 256, (3, 64, 32), dtype=np.uint8))).numpy())


def write_people(folder: Path) -> None:
    with DatasetWriter(folder) as writer:
        for image in range(PROMPTS):
            colour = COLOURS[image // 2]
            captions = [
                CaptionRow(f"{colour} coat", "short"),
                CaptionRow(f"A person in a {colour} coat walks & talks."),
            ]
            shown = {"upper_colour": colour, "hat": "cap" if image == 0 else "none"}
            writer.add(picture(image), captions, identity=image // 2, split="test", source="made up", attributes=shown)


def write_generated(folder: Path, arm: str) -> None:
    with DatasetWriter(folder) as writer:
        for source in ("guidance 1", "guidance 2.5"):
            for prompt in range(PROMPTS):
                caption = CaptionRow(f"{COLOURS[prompt // 2]} coat", "short")
                attributes = {"upper_colour": COLOURS[prompt // 2]}
                writer.add(
                    picture(hash_of(arm, source, prompt)),
                    [caption],
                    identity=prompt,
                    split="val",
                    source=source,
                    attributes=attributes,
                )
        if arm == "taca_lora":
            for prompt in range(PROMPTS):
                writer.add(
                    picture(900 + prompt),
                    [CaptionRow("red coat", "short")],
                    identity=prompt,
                    split="train",
                    source="corpus",
                )


def hash_of(*names: object) -> int:
    return sum(ord(letter) * (i + 1) for i, letter in enumerate("".join(map(str, names))))


def alignment_table(arm: str) -> dict[str, list]:
    random = np.random.default_rng(hash_of(arm))
    table: dict[str, list] = {
        "source": ["guidance 1"] * PROMPTS + ["guidance 2.5"] * PROMPTS,
        "prompt_id": list(range(PROMPTS)) * 2,
    }
    for name in ("upper_colour", "lower_colour", "hat"):
        table[name] = random.integers(0, 2, 2 * PROMPTS).astype(float).tolist()
    table["hat"][1] = table["hat"][7] = float("nan")
    return table


def attention_table() -> dict[str, list]:
    """Two prompts, three steps, two layers; TACA on at the first step of the first layer only."""
    cells = [
        (a, p, s, n) for a in ("base", "taca") for p in (7, 8) for s in (1, 2, 3) for n in ("double 0", "single 0")
    ]
    return {
        "arm": [arm for arm, _, _, _ in cells],
        "prompt_id": [prompt for _, prompt, _, _ in cells],
        "step": [step for _, _, step, _ in cells],
        "sigma": [1 - 0.1 * step for _, _, step, _ in cells],
        "layer": [layer for _, _, _, layer in cells],
        "active": [(arm, step, layer) == ("taca", 1, "double 0") for arm, _, step, layer in cells],
        "mass": [hash_of(arm, layer) % 50 / 100 + 0.1 * step + 0.01 * prompt for arm, prompt, step, layer in cells],
    }


def retrieval_table(arm: str) -> dict[str, list]:
    random = np.random.default_rng(hash_of(arm, "ranks"))
    # caption ids count every caption: short, long; so image i has 2 i and 2 i + 1.
    queries = [2 * i + 1 for i in range(PROMPTS)]
    return {
        "caption_id": queries,
        "image_id": list(range(PROMPTS)),
        "first_rank": random.integers(1, 4, PROMPTS).tolist(),
        "average_precision": random.random(PROMPTS).tolist(),
        "inverse_negative_penalty": random.random(PROMPTS).tolist(),
        "found_image_id": random.integers(0, PROMPTS, PROMPTS).tolist(),
    }


def stage_metrics(stage: str) -> dict:
    interval = {"mean": 50.0, "low": 40.0, "high": 60.0}
    scores = {
        "alignment": interval,
        "attribute_mean": 55.5,
        "attribute": {"upper_colour": 71.0, "lower_colour": 69.0, "hat": 30.0},
    }
    search = {"R@1": 41.0, "R@5": 60.0, "R@10": 70.0, "mAP": 33.0, "mINP": 20.0, "queries": 6.0}
    attribute = {"balanced_accuracy": 95.0, "majority": 30.0, "accuracy": 95.0, "pictures": 9}
    return {
        "prepare": {"test": {"identities": 3, "images": 6}},
        "probe": {
            "balanced_accuracy": 93.0,
            "worst_balanced_accuracy": 79.0,
            "majority": 30.0,
            "attribute": {"hat": attribute},
        },
        "base_model": {"vae_psnr": 31.0},
        "taca_evaluate": {"guidance_1": scores, "guidance_2.5": scores},
        "taca_attention": {
            "prompts": 2,
            "steps": 3,
            "active_steps": 1,
            "text_tokens": 2,
            "image_tokens": 6,
            "uniform_share": 25.0,
            "base": 20.0,
            "taca": 40.0,
            "difference": interval,
            "layer": {"double_0": {"base": 20.0, "taca": 40.0, "difference": interval}, "single_0": {}},
        },
        "curate": {"pictures": 6, "kept": 4, "dropped": {"blurred": 2}},
        "gadms_evaluate": {
            **search,
            "R@1_interval": interval,
            "untrained": search,
            "chance": {"R@1": 0.1},
            "attribute_ceiling": {"R@1": 90.0},
            "noise_auc": 0.7,
            "noise_auc_facts": 0.75,
            "score_auc": {"gradient": 0.7, "path": 0.8},
            "score_auc_facts": {"gradient": 0.75, "path": 0.85},
            "query_noise": {"0": {**search, "R@1_interval": interval}, "0.4": {**search, "R@1_interval": interval}},
            "gallery": 6,
            "identities": 3,
            "dataset": "rstpreid",
            "left_out": {"pictures": 2, "captions": 4},
        },
        "train_parity": {"steps": 2, "workers": 2, "largest_relative_difference": 1e-7},
    }.get(stage, {"captions": 3})


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that holds everything the report reads, in small."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    write_people(root / "data/people")
    for arm in TACA_ARMS:
        write_generated(root / f"data/generated/{arm}", arm)
        write_parquet(root / f"results/alignment/{arm}.parquet", alignment_table(arm))
    write_parquet(root / "results/attention.parquet", attention_table())
    words = {
        "caption_id": [1, 1, 3],
        "position": [0, 1, 0],
        "word": ["red", "<coat>", "blue"],
        "wrong": [False, True, False],
        "gradient": [0.9, 0.1, 0.5],
        "path": [0.2, 0.3, 0.5],
    }
    for arm in GADMS_ARMS:
        write_parquet(root / f"results/retrieval/{arm}.parquet", retrieval_table(arm))
        write_parquet(root / f"results/scores/{arm}.parquet", words)
    reasons = ["kept"] * 4 + ["blurred"] * 2
    drawn = list(range(2 * PROMPTS, 3 * PROMPTS))
    write_parquet(
        root / "data/curated/decisions.parquet",
        {"image_id": drawn, "match": [0.5, 0.4, 0.3, 0.2, 0.1, 0.0], "reason": reasons},
    )
    write_index(root)
    for stage in STAGES:
        for run in runs_of(stage):
            file = root / run.metrics
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(stage_metrics(stage.name)))
            if run.curves:
                names = ["step", "train/loss", "train/sdm"]
                if run.address == "gadms_finetune@gadms":
                    names += ["train/noise_auc", "train/noise_precision", "train/wrong_share"]
                more = [0.5] * (len(names) - 3)
                write_csv(root / run.curves, [names, [1, 2.0, "", *more], [2, 1.0, 3.0, *more]])
    for method in ("taca", "gadms"):
        write_csv(
            root / f"results/parity/{method}.csv", [["step", "local", "workers_2"], [1, 2.0, 2.0], [2, 1.0, 1.01]]
        )
    return root


def write_index(root: Path) -> None:
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": [64, 32], "layers": 1, "width": 24, "head_width": 12, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
    }
    people = PersonDataset(root / "data/people")
    rows = {row["image_id"]: row for row in people.rows(form="long")}
    tokenizer = CaptionTokenizer.from_corpus([row["caption"] for row in rows.values()])
    encoder = DualEncoder.create(config, tokenizer=tokenizer, seed=1)
    encoder.save(root / "models/retrieval/gadms")
    vectors = embed_images(encoder, list(rows), lambda ids: people.pixels(ids, 64, 32))
    metadata = {key: [row[key] for row in rows.values()] for key in ("identity", "caption")}
    model = {"weights": file_digest(root / "models/retrieval/gadms" / WEIGHTS_FILE)}
    GalleryIndex(vectors, list(rows), metadata=metadata, model=model).save(root / "data/index")


def write_parquet(path: Path, columns: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_csv(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def run_report(root: Path, folder: Path) -> tuple[Path, dict]:
    run = find("report")
    everything = load(root / "params.yaml")
    params = Parameters.partial(everything.only(run.stage.reads))
    inputs = {name: root / path for name, path in run.inputs.items()}
    outputs = {name: folder / path for name, path in run.outputs.items()}
    scratch = Scratch(folder / "scratch")
    scratch.figures.mkdir(parents=True)
    context = StageContext(scratch, seed=0, arm=None, device=torch.device("cpu"))
    return outputs["report"], report.run(params, inputs, outputs, context)


@pytest.fixture(scope="module")
def finished(made_up: Path) -> Path:
    run_report(made_up, made_up)
    return made_up


def test_two_runs_of_the_report_give_the_same_bytes(made_up, tmp_path):
    first, metrics = run_report(made_up, tmp_path / "one")
    second, again = run_report(made_up, tmp_path / "two")
    ours, theirs = files_below(first.parent), files_below(second.parent)
    assert ours == theirs
    assert metrics == again
    assert {"report.json", "figures/people.png", "figures/queries.png", "figures/people/00-taca.png"} <= set(ours)


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_report_marks_right_matches_and_wrong_attributes(finished):
    content = json.loads((finished / "reports/report.json").read_text())
    identity = {row["image_id"]: row["identity"] for row in PersonDataset(finished / "data/people").rows()}
    for query in content["queries"]:
        assert len(query["matches"]) == PROMPTS
        assert sum(match["right"] for match in query["matches"]) == 2  # two pictures of each identity
        assert all(match["right"] == (match["identity"] == query["identity"]) for match in query["matches"])
    table = alignment_table("taca")
    for place, person in enumerate(content["people"]):
        asked = {name for name in ("upper_colour", "lower_colour", "hat") if table[name][place] == table[name][place]}
        wrong = {name for name in asked if table[name][place] == 0}
        assert set(person["arms"]["taca"]["wrong"]) == wrong
        assert set(person["arms"]["taca"]["right"]) == asked - wrong
    assert len(content["people"]) == len(set(identity))


def test_the_breakdown_says_who_is_missed_and_what_is_mistaken(finished):
    content = json.loads((finished / "reports/report.json").read_text())["breakdown"]
    table = retrieval_table("random")
    hits = [100 * (rank == 1) for rank in table["first_rank"]]
    for place, colour in enumerate(COLOURS):
        row = content["attributes"]["upper_colour"][colour]
        assert row["queries"] == 2
        assert row["arms"]["random"]["mean"] == sum(hits[2 * place : 2 * place + 2]) / 2
    cap, none = (content["attributes"]["hat"][value] for value in ("cap", "none"))
    assert cap["queries"] == 1
    assert list(cap["arms"]["random"]) == ["mean"]  # of one person nothing is known of others
    assert none["arms"]["random"].keys() == {"mean", "low", "high"}
    misses = [place for place, found in enumerate(table["found_image_id"]) if found // 2 != place // 2]
    wrong = [COLOURS[table["found_image_id"][place] // 2] != COLOURS[place // 2] for place in misses]
    found = content["mistaken"]["random"]["upper_colour"]
    assert found["misses"] == len(misses) > 0
    assert found["share"] == pytest.approx(100 * sum(wrong) / len(misses), rel=1e-5)
    assert found["chance"] == pytest.approx(100 * 4 / 6, rel=1e-5)


def test_a_heat_map_has_the_caption_with_a_wrong_word_and_every_score_of_its_words(finished):
    (caption,) = json.loads((finished / "reports/report.json").read_text())["heatmaps"]  # the other has no wrong word
    assert caption["words"] == [{"word": "red", "wrong": False}, {"word": "<coat>", "wrong": True}]
    assert caption["scores"] == {"gradient": [0.9, 0.1], "path": [0.2, 0.3]}
    assert (finished / "reports/figures" / caption["picture"]).is_file()


def test_paired_differences_equal_brute_force():
    tables = {arm: alignment_table(arm) for arm in TACA_ARMS}
    found = alignment_differences(tables, "base", "guidance 2.5", seed=4)
    assert set(found) == {"lora", "taca", "taca_lora"}
    for arm, differences in found.items():
        rows = range(PROMPTS, 2 * PROMPTS)
        per_picture = []
        for row in rows:
            pairs = [
                (tables[arm][name][row], tables["base"][name][row]) for name in ("upper_colour", "lower_colour", "hat")
            ]
            pairs = [pair for pair in pairs if pair[1] == pair[1]]
            per_picture.append(100 * sum(a - b for a, b in pairs) / len(pairs))
        assert differences["mean"].mean == pytest.approx(sum(per_picture) / PROMPTS)
        assert min(per_picture) <= differences["mean"].low <= differences["mean"].mean <= differences["mean"].high
        hats = [tables[arm]["hat"][r] - tables["base"]["hat"][r] for r in rows if r != 7]
        assert differences["hat"].mean == pytest.approx(100 * sum(hats) / len(hats))


def test_retrieval_differences_are_of_the_same_queries_and_leave_out_those_without_a_match():
    tables = {
        "random": {"caption_id": [1, 2, 3, 4], "first_rank": [1, 2, 0, 4]},
        "gadms": {"caption_id": [1, 2, 3, 4], "first_rank": [1, 1, 0, 1]},
    }
    identities = {1: 7, 2: 7, 3: 8, 4: 9}
    found = retrieval_differences(tables, "random", identities, seed=0)
    assert found["gadms"].mean == pytest.approx(100 * 2 / 3)
    # Two independent people, with differences (0 + 100) / 2 and 100: every resample lies between those.
    assert 50 <= found["gadms"].low <= found["gadms"].high <= 100
    with pytest.raises(DataError, match="different queries"):
        retrieval_differences(
            {**tables, "gadms": {"caption_id": [2, 1, 3, 4], "first_rank": [1] * 4}}, "random", identities, 0
        )


def test_checks_say_what_was_missed():
    metrics = {run.address: stage_metrics(stage.name) for stage in STAGES for run in runs_of(stage)}
    met = {check["title"]: check["met"] for check in report_checks.checks(metrics)}
    assert met["Garment colours right (base, guidance 1)"] is False  # lower colour is at 69 %
    assert met["Probe, mean balanced accuracy on held-out real pictures"] is True
    assert met["Probe, weakest attribute"] is False
    assert met["GA-DMS, R@1 on the test split"] is True
    assert met["Gallery of the test split"] is False
    assert met["A killed pipeline ends with the undisturbed run's outputs"] is None


def test_numbers_that_are_not_finite_become_null_and_keys_are_sorted():
    text = report.to_text({"b": float("nan"), "a": [1 / 3, 1.23456789e-9, 123456789, True]})
    assert json.loads(text) == {"a": [0.333333, 1.23457e-9, 123456789, True], "b": None}
    assert text.index('"a"') < text.index('"b"')


def test_spread_takes_each_part_once_and_not_always_the_same_place_of_it():
    chosen = select_spread(range(80), 10)
    assert [item // 8 for item in chosen] == list(range(10))
    assert len({item % 4 for item in chosen}) > 2
    assert select_spread([1, 2], 5) == [1, 2]


def test_the_page_holds_everything_and_copes_without_mlflow(finished, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    html = page.render(Workspace(finished, tmp_path / "runs")).read_text()
    assert "test split of rstpreid" in html
    assert "not whole: validation left out 2 pictures and 4 captions" in html
    assert html.count("(here, on another test split)") == len(GADMS_ARMS)  # in the leaderboard of that set alone
    assert not (tmp_path / "none.db").exists()  # looking is not making
    resources = re.findall(r'(?:src|href|srcset|data|action)="([^"]*)"', html)
    assert resources
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in resources)
    assert "http" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]*", "", html)
    assert "@import" not in html
    assert "url(" not in html
    assert "no MLflow store" in html
    for stage in all_stages():
        assert f'id="stage-{stage.name}"' in html
    assert "&lt;coat&gt;" in html  # a caption's words are text, never markup
    for told in ("Errors of retrieval", "gadms_finetune: AUC of the score", "WebPerson 5M", "upper colour"):
        assert told in html
    assert "walks &amp; talks" in html
    rows = {value: re.search(f"<tr><th>{value}</th><td.*?</tr>", html)[0] for value in ("cap", "none")}
    assert rows["cap"].count('<span class="dim">–</span>') == len(GADMS_ARMS)
    assert len(re.findall(r'<span class="dim">\[\d+, \d+\]</span>', rows["none"])) == len(GADMS_ARMS)


def test_a_page_of_a_set_without_attributes_or_known_wrong_words_lacks_their_numbers(finished, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    root = tmp_path / "workspace"
    shutil.copytree(finished, root)
    report = json.loads((root / "reports/report.json").read_text())
    del report["retrieval"]["attribute_ceiling"]
    for arm in report["retrieval"]["arms"].values():
        for name in ("noise_auc", "noise_auc_facts", "score_auc", "score_auc_facts"):
            del arm[name]
    (root / "reports/report.json").write_text(json.dumps({**report, "heatmaps": [], "breakdown": {}}))
    text = page.render(Workspace(root, tmp_path / "runs")).read_text()
    assert "exact attribute match" not in text
    assert "no better than chance" not in text
    assert "No caption of this data set has wrong words that are known." in text


def test_a_page_without_a_report_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match="python -m pipelines repro report"):
        page.render(Workspace(tmp_path, tmp_path))


def test_runs_are_found_by_fingerprint_and_named_on_the_pipeline(finished, monkeypatch, tmp_path, empty_store):
    from mlflow import MlflowClient

    from pipelines.tracking import runs as tracking
    from pipelines.tracking.pipeline_run import open_pipeline_run

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr("pipelines.tracking.pipeline_run.pipeline_identity", lambda workspace: "abc")
    monkeypatch.setattr("pipelines.reporting.runs.pipeline_identity", lambda workspace: "abc")
    workspace = Workspace(finished, tmp_path / "runs")
    settings = load(finished / "params.yaml")
    prints = look_up(workspace, settings).fingerprints
    tracker = tracking.connect(workspace)
    parent = open_pipeline_run(tracker)
    tracker.client.set_terminated(parent, "FAILED")
    made = {}
    for address, identity in (
        ("probe", prints["probe"]),
        ("taca_train@lora", prints["taca_train@lora"]),
        ("index", "other"),
    ):
        tags = {"pipelines.fingerprint": identity, "git.revision": "0123456789", "git.dirty": "true"}
        run = tracker.client.create_run(tracker.experiment, tags=tags).info.run_id
        tracker.client.log_metric(run, "cost/seconds", 61.0)
        tracker.client.set_terminated(run, "FINISHED")
        made[address] = run

    # What scratch remembers counts, whatever the run's tags say.
    done = workspace.home / f"index-{prints['index'][:16]}" / "DONE.json"
    done.parent.mkdir(parents=True)
    done.write_text(Manifest(stage="index", fingerprint="other", run=made["index"]).to_json())

    found = look_up(workspace, settings)
    assert found.problem is None
    assert {address: run.run_id for address, run in found.runs.items()} == made
    assert found.runs["probe"].seconds == 61.0
    assert found.runs["probe"].dirty
    named = MlflowClient(uri).get_run(parent)
    assert named.data.tags["stage.probe"] == made["probe"]
    assert named.data.tags["stage.taca_train.lora"] == made["taca_train@lora"]
    assert named.info.status == "FAILED"  # naming its stages does not change how the pipeline ended


def test_every_arm_has_a_name_and_a_colour():
    style = environment(ROOT).globals["style"]
    (dots,) = re.findall(r"tbody th:is\((.*?)\)::before", style)
    for arm in (*TACA_ARMS, *GADMS_ARMS):
        assert arm in ARM_NAMES
        assert f".{arm}" in dots.split(", ")
        assert re.search(rf"\.{arm}(, \.\w+)* {{ --arm:", style)


def test_a_broken_store_costs_only_the_links(finished, monkeypatch, tmp_path, capsys):
    with sqlite3.connect(tmp_path / "broken.db") as database:
        database.execute("create table alembic_version (version_num text)")
        database.execute("insert into alembic_version values ('no such version')")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/broken.db")
    found = look_up(Workspace(finished, tmp_path / "runs"), load(finished / "params.yaml"))
    assert found.runs == {}
    assert found.problem
    assert "warning" in capsys.readouterr().err


def test_the_drawn_graph_leaves_out_what_follows_and_keeps_what_does_not():
    joined = diagram.edges(all_stages())
    assert ("prepare", "probe") in joined
    assert ("prepare", "report") not in joined
    assert ("curate", "train_parity") in joined
    # Whatever a stage reads, directly or not, can still be reached over the lines that are drawn.
    for stage in all_stages():
        reached, todo = set(), [stage.name]
        while todo:
            name = todo.pop()
            todo += [source for source, reader in joined if reader == name and source not in reached]
            reached |= {source for source, reader in joined if reader == name}
        made_by = {path: other.name for other in all_stages() for run in runs_of(other) for path in run.all_outputs}
        read = {made_by[path] for run in runs_of(stage) for path in run.inputs.values() if path in made_by}
        assert read <= reached


def test_no_two_boxes_of_the_graph_overlap_and_no_line_passes_behind_one():
    labels = {stage.name: diagram.Label("", "") for stage in all_stages()}
    svg = str(diagram.draw(all_stages(), labels))
    assert svg == str(diagram.draw(all_stages(), labels))
    assert re.findall(r'href="#stage-(\w+)"', svg) == [stage.name for stage in all_stages()]
    boxes = [(float(x), float(y)) for x, y in re.findall(r'class="box" x="([\d.]+)" y="([\d.]+)"', svg)]
    assert len(boxes) == len(all_stages())
    for i, (x, y) in enumerate(boxes):
        assert all(abs(x - u) >= diagram.WIDTH or abs(y - v) >= diagram.HEIGHT for u, v in boxes[:i])
    crossings = [list(map(float, found)) for found in re.findall(r"([\d.]+),([\d.]+) L([\d.]+),", svg)]
    assert crossings
    for left, level, right in crossings:  # a line is level where it passes a layer
        assert not any(u < right and left < u + diagram.WIDTH and v < level < v + diagram.HEIGHT for u, v in boxes)


@pytest.mark.parametrize(("low", "high"), [(0.31, 0.94), (-2, 1250), (5, 5), (1e-6, 3e-6), (-0.2, -0.1)])
def test_ticks_are_even_and_enclose_the_values(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12
    assert 2 <= len(ticks) <= 7
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_a_chart_skips_what_was_not_measured():
    svg = str(line_chart({"gadms": ([1, 2, 3], [None, 1.0, float("nan")])}, "loss"))
    (points,) = re.findall(r'points="([^"]*)"', svg)
    assert len(points.split()) == 1
    assert line_chart({"gadms": ([1], [None])}, "loss") == ""
