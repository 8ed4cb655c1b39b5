"""Named spaces: the options that a search varies, and the values that it tries."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from pipelines.runs.config import RunConfig
from pipelines.runs.defaults import LEARNING_RATES
from pipelines.runtime import UserError

SPACES = {
    "recipe": (
        "learning_rate",
        "embedding_learning_rate",
        "learning_rate_decay",
        "l2",
        "dropout",
    ),
    "optimizer": (
        "optimizer",
        "learning_rate",
        "embedding_learning_rate",
        "batch_size",
    ),
    "network": (
        "interaction",
        "embedding_dim",
        "bottom_mlp_dims",
        "top_mlp_dims",
        "dropout",
    ),
    "tables": ("min_count", "embedding_dim", "embedding_learning_rate", "l2"),
}
SPACES["all"] = tuple(dict.fromkeys(itertools.chain(*SPACES.values())))

# The hidden layers of an MLP are one choice; its last width follows from the rest.
_HIDDEN = ((64,), (128, 64), (256, 128), (512, 256), (512, 256, 64))
CHOICES: dict[str, tuple] = {
    "learning_rate_decay": ("none", "linear"),
    "l2": (0.0, 1e-7, 1e-6, 1e-5, 1e-4),
    "dropout": (0.0, 0.1, 0.2, 0.3, 0.5),
    "optimizer": ("sgd", "adagrad", "adam"),
    "batch_size": (128, 256, 512, 1024, 2048),
    "interaction": ("dot", "cat", "cross"),
    "embedding_dim": (4, 8, 16, 32, 64),
    "bottom_mlp_dims": _HIDDEN,
    "top_mlp_dims": _HIDDEN,
    "min_count": (1, 2, 5, 10, 20, 50),
}
_RATES = ("learning_rate", "embedding_learning_rate")
_FACTOR = 10.0  # rates vary by this factor in both directions
_OF_CROSS = ("cross_layers", "cross_rank")


@dataclasses.dataclass(frozen=True)
class Space:
    """The options that a search varies around a config.

    Attributes:
        base: The config, complete: the values of all other options, and the first
            trial.
        names: The options that vary.
    """

    base: RunConfig
    names: tuple[str, ...]

    @classmethod
    def make(cls, name: str, base: RunConfig, fixed: tuple[str, ...]) -> "Space":
        """Return the space of a name without its fixed options.

        Args:
            name: One of `SPACES`.
            base: The complete config.
            fixed: Options that do not vary.

        Raises:
            ValueError: If no option is left.
        """
        without = set(fixed)
        if "bottom_mlp_dims" in without:  # for dot interaction, it ends in this width
            without.add("embedding_dim")
        if base.learning_rate_decay not in CHOICES["learning_rate_decay"]:
            without.add("learning_rate_decay")
        names = tuple(option for option in SPACES[name] if option not in without)
        if not names:
            raise UserError(
                f"`space={name}` has no option that may vary: leave some of "
                f"{', '.join(f'`{option}`' for option in SPACES[name])} out."
            )
        if base.embedding_learning_rate is None:  # it equals the other one
            rate = base.learning_rate
            base = dataclasses.replace(base, embedding_learning_rate=rate)
        return cls(base, names)

    def choose(self, suggest: Callable[..., Any]) -> RunConfig:
        """Return the config of a trial.

        Args:
            suggest: Function of the name of a parameter and either `choices` or `low`
                and `high`, which returns a value.

        Raises:
            ValueError: If the options do not fit together.
        """
        base, values = self.base, {}
        if "optimizer" in self.names:
            optimizer = suggest("optimizer", choices=CHOICES["optimizer"])
            if optimizer != base.optimizer:
                rates = dict(zip(_RATES, LEARNING_RATES[optimizer]))
                base = dataclasses.replace(base.with_optimizer(optimizer), **rates)
                fixed = [name for name in _RATES if name not in self.names]
                values = {name: getattr(self.base, name) for name in fixed}
        for option in self.names:
            value = getattr(base, option)
            if option in _RATES:
                name = self._name_rate(option, base.optimizer)
                bounds = {"low": value / _FACTOR, "high": value * _FACTOR}
                values[option] = suggest(name, **bounds)
            elif option != "optimizer":
                values[option] = _decode(
                    option, suggest(option, choices=self._of(option))
                )
        return self._fit(base, values)

    def start(self) -> dict[str, Any]:
        """Return the parameters of the base, by name."""
        names = {name: name for name in self.names}
        names |= {
            name: self._name_rate(name, self.base.optimizer)
            for name in _RATES
            if name in self.names
        }
        return {names[name]: _encode(name, self.base) for name in self.names}

    def describe(self, config: RunConfig) -> dict[str, str]:
        """Return the values of the options that vary, as text."""
        values = {name: getattr(config, name) for name in self.names}
        return {name: _to_text(value) for name, value in values.items()}

    def _name_rate(self, option, optimizer):
        """Return the parameter of a rate: each optimizer has its own."""
        return f"{optimizer}_{option}" if "optimizer" in self.names else option

    def _of(self, option):
        """Return the choices of an option, with that of the base, as parameters."""
        choices, own = CHOICES[option], _decode(option, _encode(option, self.base))
        if own not in choices:
            choices = tuple(sorted((*choices, own)))
        return tuple(_to_text(c) if isinstance(c, tuple) else c for c in choices)

    def _fit(self, base, values):
        """Return the config with these values, and with options that follow from them.

        The bottom MLP ends in the width of the tables, and the top MLP in the logit.
        """
        if {"interaction", "embedding_dim", "bottom_mlp_dims"} & values.keys():
            dim = values.get("embedding_dim", base.embedding_dim)
            hidden = values.get("bottom_mlp_dims", base.bottom_mlp_dims[:-1])
            values["bottom_mlp_dims"] = (*hidden, dim)
        if "top_mlp_dims" in values:
            values["top_mlp_dims"] = (*values["top_mlp_dims"], 1)
        if values.get("interaction", "cross") != "cross":
            values |= {name: getattr(RunConfig, name) for name in _OF_CROSS}
        return dataclasses.replace(base, **values)


def _encode(option, config):
    """Return the value of an option as a parameter: a number or a text."""
    value = getattr(config, option)
    return _to_text(value[:-1]) if isinstance(value, tuple) else value


def _decode(option, value):
    if option.endswith("_dims"):
        return tuple(int(width) for width in value.split("-") if width)
    return value


def _to_text(value) -> str:
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
