"""The page of a run: exact figures, nothing foreign unescaped, nothing fetched, the same bytes every time."""

import base64
import io
import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from patchword.core.errors import DataError
from patchword.reports import figures, page
from patchword.reports.run import read_metrics, write_report

GARMENTS = ["dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt"]
HOSTILE = "<script>alert(1)</script>"
RECIPE = """data = "../photos"
model = "ViT-Ti/16"
seed = 0
image_size = [96, 96]

[budget]
steps = 400

[optimizer]
name = "adamw"
learning_rate = 0.001
"""


def thumbnail(colour: int, size: int = 48) -> str:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (colour % 256, 97, 131)).save(file, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def write_run(
    folder: Path, names: list[str] = GARMENTS, *, labels: bool = False, status: str = "finished", n: int = 372
) -> Path:
    """A run folder as training and evaluation write it, with made-up but consistent figures."""
    draw = random.Random(f"{names} {labels}")
    metric = "mean_average_precision" if labels else "accuracy"
    finished = status == "finished"
    steps = 400 if finished else 132
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")

    records: list[dict[str, Any]] = []
    for step in range(4, steps + 1, 4):
        loss = 0.9 + 1.5 * 0.99**step + draw.uniform(-0.1, 0.1)
        rate = 0.001 * min(step / 40, (400 - step) / 360)
        speed = draw.uniform(760, 840)
        records.append(
            {"kind": "train", "step": step, "loss": loss, "lr": rate, "grad_norm": 2.1, "images_per_second": speed}
        )
        if step % 40 == 0:
            value = 0.63 - 0.45 * 0.992**step + draw.uniform(-0.01, 0.01)
            records.append({"kind": "validation", "step": step, "loss": loss + 0.05, metric: value})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")

    evaluation = label_evaluation(names, draw, n) if labels else class_evaluation(names, draw, n)
    if finished:
        (folder / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    value, interval = evaluation["value"], evaluation["value_ci95"]
    result = {
        "status": status,
        "reason": {"finished": None, "stopped": "Interrupted by the user at step 132.", "failed": "The loss is NaN."}[
            status
        ],
        "model": "ViT-Ti/16",
        "params": 5526346,
        "init": "none",
        "train_images": 3068,
        "steps": steps,
        "seconds": 300.1 * steps / 400,
        "train_flops": 1.2e14 * steps / 400,
        "peak_memory": 123456789,
        "resumed_from": [],
        "seed": 0,
        "image_size": [96, 96],
        "command": "patchword train ../photos --model ViT-Ti/16 --init none --image-size 96 --minutes 5 --out runs/r",
        "data": {
            "name": "clothing",
            "location": "../photos",
            "classes": names,
            "multi_label": labels,
            "splits": {"train": 3068, "validation": 341, "test": n},
            "split_rule": "The folder has train, validation and test; they are used as they are.",
            "notices": [
                {"kind": "ignored", "where": "train/.ipynb_checkpoints", "sentence": "A hidden folder was left out."},
                {"kind": "imbalance", "where": "hat", "sentence": "Has 11 times fewer pictures than t-shirt."},
            ],
            "duplicates": "3 pictures of train are in test byte for byte; they were taken out of train.",
            "unreadable": [{"name": "train/hat/a.jpg", "reason": "is truncated"}],
        },
        "versions": {"patchword": "0.1.0", "torch": "2.14.1", "python": "3.11.7"},
        "device": "cpu, 2 threads",
        "date": "2026-11-22T10:00:00Z",
    }
    if finished:
        result |= {"split": "test", "n": n, "metric": metric, "value": value, "value_ci95": interval}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def class_evaluation(names: list[str], draw: random.Random, n: int) -> dict[str, Any]:
    """Pictures drawn so that the first class is the most frequent and neighbours are confused, and exact counts."""
    classes = len(names)
    confusion = [[0] * classes for _ in names]
    for index in range(n):
        true = index if index < classes else min(draw.randrange(classes), draw.randrange(classes))
        near = (true + draw.choice([-1, 1, 1, 2])) % classes
        confusion[true][true if draw.random() < 0.62 else near] += 1
    rows = []
    for index, name in enumerate(names):
        total, right = sum(confusion[index]), confusion[index][index]
        predicted = sum(line[index] for line in confusion)
        precision = right / predicted if predicted else None
        rows.append(
            {
                "name": name,
                "n": total,
                "correct": right,
                "predicted": predicted,
                "precision": precision,
                "recall": right / total,
                "f1": 2 * right / (total + predicted),
            }
        )
    correct = sum(row["correct"] for row in rows)
    value = correct / n
    bins, left = [], n
    for index in range(15):
        size = left if index == 14 else min(left, draw.randrange(2 * n // 15))
        left -= size
        middle = (index + 0.5) / 15
        bins.append(
            {
                "low": index / 15,
                "high": (index + 1) / 15,
                "n": size,
                "confidence": middle if size else None,
                "accuracy": max(0.0, middle - 0.07 + draw.uniform(-0.05, 0.05)) if size else None,
            }
        )
    mistakes = [
        {
            "name": f"test/{names[i % classes]}/{i:05}.jpg",
            "label": names[i % classes],
            "predicted": names[(i + 1) % classes],
            "confidence": 0.99 - 0.013 * i,
            "thumbnail": thumbnail(20 * i),
        }
        for i in range(12)
    ]
    return {
        "split": "test",
        "n": n,
        "correct": correct,
        "metric": "accuracy",
        "value": value,
        "value_ci95": [max(0.0, value - 0.051), min(1.0, value + 0.048)],
        "loss": 1.2,
        "majority": max(row["n"] for row in rows) / n,
        "top5": {"correct": n - 22, "value": (n - 22) / n, "ci95": [(n - 31) / n, (n - 14) / n]}
        if classes > 5
        else None,
        "unreadable": [],
        "classes": rows,
        "confusion": confusion,
        "balanced": {"value": 0.574, "ci95": [0.511, 0.626]},
        "calibration": {"ece": 0.0417, "bins": bins},
        "mistakes": mistakes,
    }


def label_evaluation(names: list[str], draw: random.Random, n: int) -> dict[str, Any]:
    rows = []
    for index, name in enumerate(names):
        precision, recall = draw.uniform(0.4, 0.9), draw.uniform(0.3, 0.9)
        f1 = 2 * precision * recall / (precision + recall)
        found = (
            {"precision": precision, "recall": recall, "f1": f1}
            if index
            else {"precision": None, "recall": 0.0, "f1": 0.0}
        )
        rows.append({"name": name, "n": draw.randrange(5, n), "average_precision": draw.uniform(0.3, 0.95)} | found)
    value = sum(row["average_precision"] for row in rows) / len(rows)
    return {
        "split": "test",
        "n": n,
        "metric": "mean_average_precision",
        "value": value,
        "value_ci95": [value - 0.03, value + 0.03],
        "loss": 0.2,
        "macro_f1": 0.577,
        "micro_f1": 0.619,
        "unreadable": [],
        "labels": rows,
        "mistakes": [],
    }


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text outside styles; complains of what is not closed."""

    VOID = frozenset({"meta", "link", "img", "br", "input", "rect", "path", "use"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        """The words of the page, with every kind of space as one plain space."""
        return " ".join(" ".join(self.words).split())

    def values(self, attribute: str) -> list[str]:
        return [value for _, attrs in self.found if (value := attrs.get(attribute)) is not None]


def read(run: Path) -> Elements:
    return Elements(write_report(run).read_text(encoding="utf-8"))


def sentence(elements: Elements) -> str:
    """The headline, from the copy in the head that search engines and previews show."""
    description = next(attrs["content"] for tag, attrs in elements.found if attrs.get("name") == "description")
    return " ".join((description or "").split())


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "ten")


@pytest.fixture(scope="module")
def ten_page(ten: Path) -> Elements:
    return read(ten)


def test_points_have_a_sign_and_no_negative_zero() -> None:
    assert [page.decimal(value, 2) for value in (0.042, -0.3, -0.001, None)] == ["0.04", "−0.30", "0.00", "–"]
    assert [page.interval(each) for each in ((0.1, 0.3), (-0.05, 0.3))] == ["0.10–0.30", "−0.05 to 0.30"]
    assert [page.points(value) for value in (0.0214, -0.003, -0.0001, None)] == ["+2.1", "−0.3", "+0.0", "–"]


def test_the_result_is_the_first_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    edit(run / "evaluation.json", majority=0.196)
    edit(run / "result.json", value=0.613, value_ci95=[0.562, 0.661])
    assert sentence(read(run)) == (
        "ViT-Ti/16, trained from nothing on 3,068 pictures for 5 minutes, names 61.3 % of 372 test pictures right "
        "(95 % interval 56.2–66.1 %); naming always the class that is most frequent among them would give 19.6 %."
    )
    edit(run / "result.json", init="runs/x (ViT-Ti/16 at 28x28; position embedding resampled 7x7 -> 14x14)")
    page = read(run)
    assert sentence(page).startswith("ViT-Ti/16, fine-tuned from runs/x on 3,068 pictures for 5 minutes, names 61.3 %")
    assert "runs/x (ViT-Ti/16 at 28x28; position embedding resampled 7x7 -> 14x14)" in page.text
    edit(run / "evaluation.json", majority=0.562)
    assert sentence(read(run)).endswith("The interval does not exclude that it has learned nothing.")
    edit(run / "evaluation.json", majority=0.661)
    assert sentence(read(run)).endswith("66.1 %. The interval does not exclude that it has learned nothing.")
    edit(run / "evaluation.json", majority=0.662)
    assert sentence(read(run)).endswith("66.2 %. That is more, beyond chance.")


def test_what_may_be_less_than_nothing_has_a_minus_and_stays_on_its_strip(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    edit(run / "evaluation.json", majority=None)
    edit(run / "result.json", metric="explained_variance", value=-0.021, value_ci95=[-0.026, 0.015])
    page = read(run)
    assert sentence(page).endswith(
        "an explained variance of −2.1 % on 372 test pictures (95 % interval −2.6 to 1.5 %)."
    )
    styles = [style for style in page.values("style") if "left:" in style]
    assert styles == ["left:0.00%;right:98.50%", "left:0.00%"]
    curve = figures.metric_curve([(1, -0.24), (8, -0.02)], [(1, 30.0), (8, 31.0)])
    assert re.findall(r">(.20 %)<", curve) == ["−20 %"]


def test_a_teacher_and_the_pictures_without_labels_are_told_of(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    edit(run / "result.json", teacher={"weights": "runs/first", "unlabelled": "more", "pictures": 0})
    page = read(run)
    assert "taught by runs/first" in page.text
    assert "without a label" not in page.text
    edit(run / "result.json", teacher={"weights": "runs/first", "unlabelled": "more", "pictures": 1})
    assert "Of train, 1 picture from more is without a label: what the teacher says counts." in read(run).text
    assert "too unsure" not in read(run).text
    edit(run / "result.json", teacher={"weights": "runs/first", "unlabelled": "more", "pictures": 2, "unsure": 1043})
    assert "what the teacher says counts. Of 1,043 more it was too unsure: they are left out." in read(run).text


def test_the_first_sentence_with_several_labels(tmp_path: Path) -> None:
    run = write_run(tmp_path, GARMENTS[:7], labels=True, n=503)
    edit(run / "result.json", value=0.712, value_ci95=[0.683, 0.741])
    page = read(run)
    assert sentence(page) == (
        "ViT-Ti/16, trained from nothing on 3,068 pictures for 5 minutes, reaches a mean average precision of 71.2 % "
        "over 7 labels on 503 test pictures (95 % interval 68.3–74.1 %)."
    )
    assert "F1, mean over labels 57.7 %" in page.text
    assert "F1, all labels together 61.9 %" in page.text
    assert "Confusions" not in page.text
    first = json.loads((run / "evaluation.json").read_text())["labels"][0]
    assert f"dress {first['n']} {100 * first['average_precision']:.1f} – 0.0 0.0" in page.text


@pytest.mark.parametrize(
    ("status", "opening", "reason"),
    [
        ("stopped", "was stopped after 132 of 400 steps, before it could be evaluated.", "Interrupted by the user"),
        ("failed", "failed after 132 of 400 steps, before it could be evaluated.", "The loss is NaN."),
    ],
)
def test_a_run_that_did_not_finish_says_so(tmp_path: Path, status: str, opening: str, reason: str) -> None:
    run = write_run(tmp_path, status=status)
    page = read(run)
    assert sentence(page) == f"ViT-Ti/16, trained from nothing on 3,068 pictures, {opening}"
    assert reason in page.text
    assert "There is none: the run did not reach its end." in page.text
    assert "On validation, the accuracy ended at" in page.text
    # An evaluation left by an earlier run is of other weights.
    (run / "evaluation.json").write_text(json.dumps(class_evaluation(GARMENTS, random.Random(0), 372)))
    assert read(run).text == page.text


def test_the_figures_are_those_of_the_files(ten: Path, ten_page: Elements) -> None:
    text = ten_page.text
    evaluation = json.loads((ten / "evaluation.json").read_text())
    for row in evaluation["classes"]:
        figures_ = [f"{100 * row[name]:.1f}" for name in ("recall", "precision", "f1")]
        assert " ".join([row["name"], str(row["n"]), str(row["correct"]), *figures_]) in text
    assert f"named right {evaluation['correct']} of 372" in text
    assert "right within five guesses 94.1 % 91.7–96.2" in text
    assert "balanced accuracy 57.4 % 51.1–62.6" in text
    assert "loss 1.200 nats" in text
    assert "Expected calibration error 4.2 %" in text
    assert "train 3,068 pictures validation 341 pictures test 372 pictures" in text
    assert "3 pictures of train are in test byte for byte" in text
    assert "train/hat/a.jpg is truncated" in text
    for cost in ["5 minutes", "steps 400", "0.12 PFLOP", "400 GFLOP/s", "123 MB", "5,526,346"]:
        assert cost in text
    assert "seed 0" in text
    assert "96 × 96 pixels" in text
    assert "2026-11-22 10:00 UTC" in text
    assert "learning_rate = 0.001" in text
    assert "patchword train ../photos --model ViT-Ti/16 --init none --image-size 96" in text
    first = evaluation["mistakes"][0]
    assert f"named hat is dress 99 % sure {first['name'].split('/')[-1]}" in text


def test_the_largest_confusions_are_listed(tmp_path: Path) -> None:
    run = write_run(tmp_path, GARMENTS[:7])
    confusion = [[11 if row == column else 0 for column in range(7)] for row in range(7)]
    confusion[2][5], confusion[4][1] = 5, 3
    edit(run / "evaluation.json", confusion=confusion)
    text = read(run).text
    assert "% of the true class longsleeve shirt 5 31.2 pants hat 3 21.4" in text


def test_a_long_name_of_a_mistake_keeps_both_its_ends(tmp_path: Path) -> None:
    run = write_run(tmp_path, GARMENTS[:3])
    name = "test/dress/2c05f3a1-0b7e-4c1d-9a53-6d2f8e4b7a90-full.jpeg"
    mistakes = json.loads((run / "evaluation.json").read_text())["mistakes"]
    edit(run / "evaluation.json", mistakes=[mistakes[0] | {"name": name}])
    page = read(run)
    assert "99 % sure 2c05f3a1-0b7e…7a90-full.jpeg" in page.text
    assert [attrs["title"] for tag, attrs in page.found if tag == "p" and "title" in attrs] == [name]


def test_the_label_of_a_strip_fits_at_the_edge() -> None:
    expected = {0.00012: "0.00012", 1921: "1,921", 99_999: "99,999", 553_664: "554k", 999_999: "1M", 1.107e6: "1.11M"}
    for rate, label in (expected | {3.2e9: "3.2G", 4e30: "4e+30"}).items():
        svg = figures.loss_curve([(1, 2.0), (2, 1.0)], [], [(1, rate / 2), (2, rate)])
        assert f">{label}</text>" in svg


def test_the_most_confident_mistakes_are_pictures(ten: Path, ten_page: Elements) -> None:
    pictures = [attrs for tag, attrs in ten_page.found if tag == "img"]
    assert len(pictures) == 12
    assert all(
        p["src"] == m["thumbnail"]
        for p, m in zip(pictures, json.loads((ten / "evaluation.json").read_text())["mistakes"], strict=True)
    )
    assert (pictures[0]["width"], pictures[0]["height"], pictures[0]["class"]) == ("48", "48", "pixels")
    assert pictures[0]["alt"] == "test/dress/00000.jpg"


@pytest.mark.parametrize(
    "source",
    [
        "https://example.org/a.jpg",
        "javascript:alert(1)",
        'data:image/jpeg;base64,AAAA" onerror="alert(1)',
        "data:image/png;base64,QUJD",
        None,
    ],
)
def test_a_thumbnail_that_is_no_embedded_picture_is_not_shown(tmp_path: Path, source: str | None) -> None:
    run = write_run(tmp_path)
    mistake = {"name": "a.jpg", "label": "hat", "predicted": "dress", "confidence": 0.9, "thumbnail": source}
    edit(run / "evaluation.json", mistakes=[mistake], calibration=None)
    (run / "metrics.jsonl").unlink()
    page = read(run)
    assert [tag for tag, _ in page.found if tag == "img"] == []
    assert "picture not kept" in page.text


def test_text_from_outside_is_only_text(tmp_path: Path) -> None:
    names = [HOSTILE, "</svg><img src=x onerror=alert(2)>", "{{ 7 * 7 }}", "$\\alpha^{2$", "猫", "a" * 89, "&amp;"]
    run = write_run(tmp_path, names)
    notice = {"kind": HOSTILE, "where": HOSTILE, "sentence": HOSTILE}
    data = {"name": HOSTILE, "location": HOSTILE, "classes": names, "splits": {HOSTILE: 7}, "split_rule": HOSTILE}
    data |= {"notices": [notice], "duplicates": HOSTILE, "unreadable": [{"name": HOSTILE, "reason": HOSTILE}]}
    text_fields = ["model", "init", "command", "device", "date", "split"]
    edit(run / "result.json", data=data, versions={HOSTILE: HOSTILE}, **dict.fromkeys(text_fields, HOSTILE))
    (run / "recipe.toml").write_text("</code></pre><script>alert(3)</script>", encoding="utf-8")
    page = read(run)
    tags = [tag for tag, _ in page.found]
    assert "script" not in tags
    assert tags.count("img") == 12
    assert not [name for _, attrs in page.found for name in attrs if name.startswith("on")]
    assert page.text.count(HOSTILE) > 20
    assert "{{ 7 * 7 }}" in page.text
    assert "$\\alpha^{2$" in page.text
    assert "猫" in page.text

    run = write_run(tmp_path / "failed", status="failed")
    edit(run / "result.json", reason=HOSTILE)
    assert HOSTILE in read(run).text


@pytest.mark.parametrize("labels", [False, True])
def test_the_page_asks_no_network_and_no_other_file(tmp_path: Path, labels: bool) -> None:
    run = write_run(tmp_path, labels=labels)
    page = read(run)
    source = (run / "report.html").read_text(encoding="utf-8")
    assert "http:" not in source
    assert "https:" not in source
    assert "@import" not in source
    for value in [*page.values("src"), *page.values("href")]:
        assert value.startswith(("data:", "#"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", source))
    policy = next(attrs["content"] for _, attrs in page.found if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_figures_are_accessible_and_take_the_colours_of_the_page(ten: Path, ten_page: Elements) -> None:
    source = (ten / "report.html").read_text(encoding="utf-8")
    drawings = re.findall(r"<svg class=.*?</svg>", source, flags=re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        assert 'role="img"><title>' in drawing
        assert not re.search(r"#[0-9a-f]{6}[;\"]", drawing)
    ids = ten_page.values("id")
    assert len(ids) == len(set(ids))
    references = {value.removeprefix("#") for value in ten_page.values("href") if value.startswith("#")}
    assert references | set(re.findall(r"url\(#([^)]*)\)", source)) == set(ids)
    assert [tag for tag, _ in ten_page.found].count("h1") == 1


def test_the_same_files_give_the_same_bytes(ten: Path, tmp_path: Path) -> None:
    import matplotlib

    first = write_report(ten).read_bytes()
    other = write_run(tmp_path / "elsewhere")
    with matplotlib.rc_context({"lines.linewidth": 17, "font.size": 31, "svg.hashsalt": "other"}):
        assert write_report(other).read_bytes() == first
        assert (matplotlib.rcParams["lines.linewidth"], matplotlib.rcParams["font.size"]) == (17, 31)
    assert len(first) < 1_000_000


def test_only_the_page_is_written(ten: Path) -> None:
    before = {path.name: path.read_bytes() for path in ten.iterdir() if path.name != "report.html"}
    assert write_report(ten) == ten / "report.html"
    assert {path.name: path.read_bytes() for path in ten.iterdir() if path.name != "report.html"} == before


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    whole = write_report(run).read_bytes()
    with (run / "metrics.jsonl").open("ab") as file:
        file.write('{"kind":"train","step":404,"loss":1.9,"note":"é'.encode()[:-1])
    assert write_report(run).read_bytes() == whole


def test_of_a_step_done_twice_the_later_record_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        '{"kind":"train","step":7,"loss":3.0}',
        '{"kind":"tra',
        "[]",
        "5",
        '{"kind":"validation","step":7,"loss":2.0}',
    ]
    path.write_text("\n".join([*lines, '{"kind":"train","step":7,"loss":1.0}', '{"kind":"train","step":3,"loss":9.0}']))
    assert [(r["kind"], r["step"], r["loss"]) for r in read_metrics(path)] == [
        ("train", 3, 9.0),
        ("train", 7, 1.0),
        ("validation", 7, 2.0),
    ]
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_a_loss_that_is_no_number_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, status="failed")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind":"train","step":137,"loss":NaN,"lr":0.001,"images_per_second":Infinity}\n')
    assert "The loss stopped being a finite number at step 137." in read(run).text


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_what_is_missing_is_left_out_with_a_word(tmp_path: Path, status: str) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"status": status}))
    text = read(tmp_path).text
    for word in [
        "before its data were opened",
        "Nothing was recorded",
        "There is none",
        "recipe.toml is not in this folder",
    ]:
        assert word in text


@pytest.mark.parametrize(
    "absent", ["accuracy", "metrics.jsonl", "top5", "calibration", "confusion", "mistakes", "majority", "balanced"]
)
def test_each_piece_may_be_absent(tmp_path: Path, absent: str) -> None:
    run = write_run(tmp_path)
    if absent == "metrics.jsonl":
        (run / absent).unlink()
    elif absent == "accuracy":
        lines = (run / "metrics.jsonl").read_text().splitlines()
        (run / "metrics.jsonl").write_text("\n".join(line for line in lines if "validation" not in line))
    else:
        edit(run / "evaluation.json", **{absent: None})
    page = read(run)
    assert "names" in sentence(page)
    assert ("Training ended before the first look at the validation split" in page.text) == (absent == "accuracy")
    edit(run / "result.json", data={"name": "clothing", "splits": {"train": 3068}})
    assert ("No validation split was looked at" in read(run).text) == (absent == "accuracy")
    assert ("Calibration" in page.text) == (absent != "calibration")
    assert ("Mistakes" in page.text) == (absent != "mistakes")
    assert ("guessing" in page.text) == (absent != "majority")
    assert ("balanced accuracy" in page.text) == (absent != "balanced")


def test_a_run_resumed_shows_where(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    edit(run / "result.json", resumed_from=[113, 211])
    assert "Resumed from step 113, 211 (dotted)." in read(run).text


@pytest.mark.parametrize("content", ["[1, 2]", "{", ""])
def test_a_damaged_result_is_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(DataError, match=r"result\.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_many_classes_stay_readable(tmp_path: Path) -> None:
    names = [f"class {index:03}" for index in range(101)]
    page = read(write_run(tmp_path, names, n=7001))
    assert "Confusion matrix" not in page.values("aria-label")
    assert page.text.count("The ten best") == 1
    assert "All 101 classes" in page.text
    table = page.text[page.text.index("% of the true class") :]
    assert len(re.findall(r"class \d+ class \d+ \d+ \d+\.\d", table)) == 30


def test_the_matrix_writes_counts_and_shades_shares() -> None:
    svg = figures.confusion_matrix(["a", "b", "c"], [[13, 0, 3], [0, 0, 0], [1, 2, 97]])
    assert re.findall(r'<text x="[^"]*" y="[^"]*">(\d+)</text>', svg) == ["13", "3", "1", "2", "97"]
    shades = re.findall(r'class="(hit|miss)" fill-opacity="([\d.]+)"', svg)
    # Levels are ceil(10·√share): 13/16 and 97/100 → 10; 3/16 → 5; 1/100 → 1; 2/100 → 2.
    assert shades == [("hit", "0.91"), ("miss", "0.145"), ("miss", "0.23"), ("miss", "0.485")]


def test_a_matrix_of_a_hundred_classes_is_small() -> None:
    counts = [[(7 * row + 11 * column) % 13 for column in range(100)] for row in range(100)]
    svg = figures.confusion_matrix([f"class {index}" for index in range(100)], counts)
    assert len(svg) < 250_000
    assert svg.count("<path") <= 20
    assert 'class="counts"' in svg
    assert re.findall(r">(\d+)</text>", svg) == []


def test_a_long_curve_is_thinned() -> None:
    points = [(step, 2.0 + (step % 7) / 70) for step in range(1, 20_011)]
    svg = figures.loss_curve(points, points[::1000], points)
    assert len(svg) < 25_000
    assert "20,000" in svg


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (page.percent(0.6129), "61.3 %"),
        (page.percent(None), "–"),
        (page.percent(-0.0214), "−2.1 %"),
        (page.percent(-0.0004), "0.0 %"),
        (page.number(5526346), "5,526,346"),
        (page.decimal(0.04166), "0.042"),
        (page.decimal(None), "–"),
        (page.duration(1), "1 second"),
        (page.duration(12.4), "12.4 seconds"),
        (page.duration(300.1), "5 minutes"),
        (page.duration(102), "1.7 minutes"),
        (page.duration(7980), "2 h 13 min"),
        (page.duration(7200), "2 h"),
        (page.flops(1.2e14), "0.12 PFLOP"),
        (page.flops(2.345e18), "2,345 PFLOP"),
        (page.flops(1.23e12), "1.23 TFLOP"),
        (page.flops(7e7), "0.07 GFLOP"),
        (page.flops(4e11, "FLOP/s"), "400 GFLOP/s"),
        (page.flops(6.7e13, "FLOP/s"), "67 TFLOP/s"),
        (page.storage(123456789), "123 MB"),
        (page.storage(2.5e9), "2.5 GB"),
        (page.storage(700), "0.7 kB"),
        (page.count(1, "class", "classes"), "1 class"),
        (page.count(1009, "picture"), "1,009 pictures"),
        (page.moment("2026-11-22T11:30:59+01:00"), "2026-11-22 10:30 UTC"),
        (page.moment("2026-11-22T10:00:00"), "2026-11-22 10:00 UTC"),
        (page.moment("yesterday"), "yesterday"),
    ],
)
def test_numbers_are_written_for_people(written: str, expected: str) -> None:
    assert " ".join(written.split()) == expected


def test_matplotlib_is_loaded_only_to_draw() -> None:
    program = "import sys, patchword.reports.run; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
