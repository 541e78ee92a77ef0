"""Functions that a config names: a user's own only, and nothing is called or instantiated to make one."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.serialization import load as reexported

from vrft.cli.config_parser import ConfigParser, harden_parsing
from vrft.cli.functions import find_function
from vrft.errors import ConfigurationError
from vrft.rewards import FunctionReward, Reward

CALLED: list[object] = []


def own(*given: object) -> float:
    CALLED.append(given)
    return 0.5


class Called:
    """Would be a function if it were instantiated."""

    def __init__(self, *given: object, **settings: object) -> None:
        CALLED.append(given)

    def __call__(self, *given: object) -> float:
        return 1.0


part = functools.partial(own, 1)
instance = Called()


@pytest.fixture(autouse=True)
def _forget() -> None:
    CALLED.clear()


class Anything(Callback):
    """A user's callback with every kind of field that could hold a function, a class or a mapping."""

    def __init__(
        self,
        one: Callable[..., float] = own,
        maybe: Callable[[int], float] | None = None,
        several: list[Callable[[int], float]] = [],  # noqa: B006
        named: dict[str, Callable[[int], float]] = {},  # noqa: B006
        mixed: int | list[Callable[..., Any]] | None = None,
        tensor: Callable[[], torch.Tensor] | None = None,
        anything: Any = None,
        untyped=None,
        mapping: dict[str, Any] = {},  # noqa: B006
        **others: Any,
    ) -> None:
        self.fields = {"one": one, "maybe": maybe, "several": several, "named": named, "mixed": mixed}
        self.fields |= {"tensor": tensor, "anything": anything, "untyped": untyped, "mapping": mapping}


def parse(kind: type, cls: type, **fields: object) -> Any:
    harden_parsing()
    parser = ConfigParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "it")
    name = f"{cls.__module__}.{cls.__qualname__}"
    return parser.instantiate(parser.parse_object({"it": {"class_path": name, "init_args": fields}})).it


STRANGE = [
    pytest.param("torch.load", id="a function that unpickles"),
    pytest.param("torch.serialization.load", id="where it is defined"),
    pytest.param("os.system", id="a function that runs a command"),
    pytest.param("builtins.print", id="a built-in"),
    pytest.param("antigravity.geohash", id="a module whose import opens a browser"),
    pytest.param("vrft.utils.files.write_json", id="a function of the package"),
    pytest.param(f"{__name__}.reexported", id="a library's function under a user's name"),
    pytest.param(f"{__name__}.Called", id="a class"),
    pytest.param(f"{__name__}.part", id="a partial"),
    pytest.param(f"{__name__}.instance", id="an instance"),
    pytest.param(f"{__name__}.absent", id="no such function"),
    pytest.param("no_such_module.own", id="no such module"),
    pytest.param("own", id="no module"),
    pytest.param({"class_path": f"{__name__}.Called", "init_args": {}}, id="a class with its arguments"),
    pytest.param({"class_path": "torch.load", "init_args": {"f": "x", "weights_only": False}}, id="a call"),
    pytest.param(["torch.load"], id="a list"),
    pytest.param(3, id="a number"),
]


@pytest.mark.parametrize("value", STRANGE)
def test_only_a_users_own_function_is_one(value: object) -> None:
    for kind, cls, field in ((Reward, FunctionReward, "function"), (Callback, LambdaCallback, "on_train_start")):
        with pytest.raises(ConfigurationError, match="name of a function of your own"):
            parse(kind, cls, **{field: value})
    assert not CALLED
    assert reexported is torch.load


@pytest.mark.parametrize("value", [f"{__name__}.Called", {"class_path": f"{__name__}.Called"}, "torch.load"])
@pytest.mark.parametrize("wrap", ["one", "maybe", "several", "named", "mixed", "tensor"])
def test_no_type_with_a_callable_instantiates(wrap: str, value: object) -> None:
    nested: object = {"several": [value], "named": {"a": value}, "mixed": [value]}.get(wrap, value)
    with pytest.raises(ConfigurationError):
        parse(Callback, Anything, **{wrap: nested})
    assert not CALLED


@pytest.mark.parametrize("field", ["anything", "untyped", "mapping"])
def test_a_class_in_a_field_of_any_type_stays_a_mapping(field: str) -> None:
    spec = {"class_path": f"{__name__}.Called", "init_args": {}}
    parse(Callback, Anything, **{field: {"a": spec} if field == "mapping" else spec})
    assert not CALLED


def test_a_factory_makes_only_what_it_is_for() -> None:
    harden_parsing()
    parser = ConfigParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=OptimizerCallable)
    parser.add_argument("--scheduler", type=LRSchedulerCallable)
    for value in (f"{__name__}.Called", f"{__name__}.own", json.dumps({"class_path": f"{__name__}.Called"})):
        for name in ("optimizer", "scheduler"):
            with pytest.raises(ConfigurationError):
                parser.parse_args([f"--{name}={value}"])
    config = {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": "torch.load"}}
    with pytest.raises(ConfigurationError, match="name of a function of your own"):
        parser.parse_args([f"--scheduler={json.dumps(config)}"])
    config["init_args"] = {"lr_lambda": f"{__name__}.own"}  # type: ignore[assignment]
    make = parser.instantiate(parser.parse_args([f"--scheduler={json.dumps(config)}"])).scheduler
    assert make(torch.optim.SGD([torch.zeros(1)], lr=1.0)).get_last_lr() == [0.5]


def test_a_users_function_is_found_by_name_and_written_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_module_of_rewards.py").write_text("def mine(**given):\n    return 0.25\n")
    monkeypatch.syspath_prepend(tmp_path)
    harden_parsing()
    parser = ConfigParser(exit_on_error=False)
    parser.add_subclass_arguments(Reward, "reward")
    name = "my_module_of_rewards.mine"
    config = parser.parse_args(["--reward=vrft.rewards.FunctionReward", f"--reward.function={name}"])
    assert f"function: {name}" in parser.dump(config)
    assert parser.instantiate(config).reward.function() == 0.25
    assert parse(Callback, Anything, several=[f"{__name__}.own"]).fields["several"] == [own]
    assert find_function(own) is own
