"""Files of learners from strangers: what is ours comes back, all else is refused with a reason."""

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import icl_bench
from baselines import gpicl, rebuild, sgd
from baselines.common import save_learner
from baselines.rebuild import ReplayError, load_learner
from baselines.sequence import build_model
from icl_bench.leaderboard.learner_files import write_settings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a small Transformer."""
    config = dataclasses.replace(gpicl.cpu(), suite="digits-v0", width=16, layers=1, device="cpu")
    model = build_model(gpicl.METHOD, config)
    save_learner(tmp_path / "learner.safetensors", model.state_dict(), "gpicl", config)
    return tmp_path / "learner.safetensors"


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def about(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["learner"])


def rewrite(path: Path, header: object, **tensors: torch.Tensor) -> None:
    """The same file with another header, a text or JSON, or other tensors."""
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors_of(path) | tensors, path, metadata={"learner": text})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "os"}, "'os' is none of those with weights: gpicl"),
        ({"baseline": "sgd"}, "'sgd' is none of those with weights"),
        ({"baseline": ["gpicl"]}, "baseline must be a name"),
        ({"config": [["width", 16]]}, "config an object"),
        ({"config": {"breadth": 3}}, "settings differ in breadth"),
        ({"baseline": "lstm"}, "settings differ in heads, layers, positions, width"),
        ({"width": 10**7}, "a state of 2000000000 numbers"),
        ({"width": 10**400}, "width cannot be 1000"),
        ({"width": 32.0}, "width cannot be 32.0"),
        ({"width": "16"}, "width cannot be '16'"),
        ({"width": True}, "width cannot be True"),
        ({"width": None}, "width cannot be None"),
        ({"width": [[[16]]]}, "width cannot be"),
        ({"lr": 1e400}, "lr cannot be inf"),
        ({"lr": float("nan")}, "lr cannot be nan"),
        ({"positions": "absolute"}, "positions cannot be 'absolute'"),
        ({"repeat_steps": [1, 2, 3]}, "repeat_steps cannot be"),
        ({"layers": 10**6}, "layers above 256"),
        ({"width": 32}, "the tensors are not those of its settings"),
        ({"width": -1}, "--width must be"),
        ({"env": "Nothing-v0"}, "Nothing-v0"),
        ({"suite": "/etc/passwd"}, "/etc/passwd"),
        ({"env": "MNIST-Proj14-v0", "suite": None}, "the tensors are not those of its settings"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_headers_that_are_refused(path, changes, message):
    header = about(path)
    for key, value in changes.items():
        (header if key in header else header["config"])[key] = value
    rewrite(path, header)
    with pytest.raises(ReplayError, match=message):
        load_learner(path)


def test_what_costs_more_than_the_weights_show_is_capped(tmp_path):
    method = importlib.import_module("baselines.vsml").METHOD
    config = dataclasses.replace(method.presets["cpu"](), env="Digits-Proj8-v0", device="cpu")
    path, state = tmp_path / "learner.safetensors", build_model(method, config).state_dict()
    for changes, message in (
        ({"neurons": 10**9}, "neurons above 4096"),
        ({"neurons": 4096, "layers": 1000}, "layers above 256"),
        ({"micro_ticks": 10**9}, "micro_ticks above 64"),
    ):
        save_learner(path, state, "vsml", dataclasses.replace(config, **changes))
        with pytest.raises(ReplayError, match=message):
            load_learner(path)
    hidden = dataclasses.replace(sgd.cpu(), env="MNIST-Proj-v0", hidden=4096)
    write_settings(tmp_path / "x.json", "sgd", dataclasses.asdict(hidden))
    with pytest.raises(ReplayError, match="a state of 37"):
        load_learner(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 30_000, "does not say"),
        ('{"baseline": "gpicl", "config": ' + '{"a": ' * 5000 + "1" + "}" * 5001, "does not say"),
        ("{}", "does not say"),
        ("[1]", "does not say"),
        ("null", "does not say"),
        ("\x1b[31m not JSON", "does not say"),
        (" " * 70_000, "a header of more than 64000"),
    ],
    ids=["deep list", "deep settings", "empty", "a list", "null", "no JSON", "too long"],
)
def test_headers_that_are_none(path, text, message):
    rewrite(path, text)
    with pytest.raises(ReplayError, match=message):
        load_learner(path)


def changed(value: float, kind: torch.dtype = torch.float32) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        weight = tensors_of(path)["head.weight"].clone()
        weight[0, 0] = value
        rewrite(path, about(path), **{"head.weight": weight.to(kind)})

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed(float("nan")), "'head.weight' are not finite"),
        (changed(float("inf")), "'head.weight' are not finite"),
        (changed(0.0, torch.float64), "1 differ in name, shape or type, the first is 'head.weig"),
        (changed(0.0, torch.int32), "shape or type, the first is 'head.weight'"),
        (lambda path: rewrite(path, about(path), more=torch.ones(2)), "the first is 'more'"),
        (lambda path: path.write_bytes(b"\x80\x04K\x01."), "cannot be read as .safetensors"),
        (lambda path: path.write_bytes(b"\xff" * 8 + b"{}"), "cannot be read as .safetensors"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "cannot be read as .safetensors"),
        (lambda path: path.unlink(), "cannot be read as .safetensors"),
    ],
    ids=["NaN", "infinite", "double", "whole", "more", "pickle", "huge header", "cut", "gone"],
)
def test_weights_that_are_refused(path, damage, message):
    damage(path)
    with pytest.raises(ReplayError, match=message):
        load_learner(path)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"baseline": "chance", "config": {}}, "are num_classes"),
        ({"baseline": "chance", "config": {"num_classes": 10, "x": 1}}, "are num_classes"),
        ({"baseline": "chance", "config": {"num_classes": 10**9}}, "from 2 to 1000"),
        ({"baseline": "1-nn", "config": {"num_classes": True}}, "a whole number"),
        ({"baseline": "gpicl", "config": {}}, "none of those without weights: chance"),
        ({"baseline": "os", "config": {}}, "'os' is none of those without weights"),
        ({"baseline": "sgd", "config": {"hidden": 10**9}}, "hidden above 4096"),
        ({"baseline": "sgd", "config": {"width": 3}}, "settings differ in width"),
        ({"baseline": "sgd", "config": {"optimizer": "lbfgs"}}, "optimizer cannot be 'lbfgs'"),
        ({"baseline": "sgd", "config": {"sweep_rates": ["x"]}}, "sweep_rates cannot be"),
        ({"baseline": "sgd", "config": {}, "x": "y" * 70_000}, "more than 64000 bytes"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_settings_that_are_refused(document, message, tmp_path):
    path = tmp_path / "seed-0.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ReplayError, match=message):
        load_learner(path)


def test_folders_of_a_stranger_are_never_opened(tmp_path):
    config = {"data_dir": "/etc", "runs": "/etc", "resume": "/etc", "device": "cuda:7"}
    write_settings(tmp_path / "seed-0.json", "sgd", config)
    learner = load_learner(tmp_path / "seed-0.json")
    assert (learner.config.data_dir, learner.config.device) == (None, "auto")
    assert (learner.config.runs, learner.config.resume) == ("runs", None)


def test_a_setting_that_came_later_has_its_default(path):
    header = about(path)
    assert header["config"].pop("single_task") == 0.0
    rewrite(path, header)
    load_learner(path)


@pytest.mark.parametrize("name", rebuild.BASELINES)
def test_every_learner_comes_back_from_its_file(name, tmp_path):
    method = importlib.import_module(rebuild.BASELINES[name]).METHOD
    config = dataclasses.replace(method.presets["cpu"](), env="Digits-Proj8-v0", device="cpu")
    model = build_model(method, config).eval()
    save_learner(tmp_path / "learner.safetensors", model.state_dict(), name, config)
    batch = icl_bench.make("Digits-Proj8-v0").unwrapped.sample(2)
    again = load_learner(tmp_path / "learner.safetensors")
    with torch.no_grad():
        expected = model(batch.x, batch.prev_y)
        assert expected.std() > 0
        torch.testing.assert_close(again(batch.x, batch.prev_y), expected, atol=0, rtol=0)
