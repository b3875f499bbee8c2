"""An objective or a correction from a file of the user's own.

# my_losses.py
from learner.losses import Surrogate, TokenBatch
from learner.losses.surrogate import token_mean

def reinforce(batch: TokenBatch, *, scale: float = 1.0) -> Surrogate: ...

# run.toml
[learner.objective]
kind = "custom"
import = "my_losses:reinforce"
path = "."                      # directory of the module, relative to the TOML
settings = { scale = 0.5 }
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from learner.losses.batch import TokenBatch
from learner.losses.corrections import Weigher
from learner.losses.surrogate import PolicyObjective
from learner.objective_settings import CustomCorrection, CustomObjective


def custom_objective(settings: CustomObjective) -> PolicyObjective:
    """`(TokenBatch) -> Surrogate`, of the usable tokens of a micro-batch. ValueError: it cannot be imported or
    called.
    """
    return cast(PolicyObjective, _function(settings))


def custom_correction(settings: CustomCorrection) -> Weigher:
    """`(TokenBatch) -> weight [T]`. ValueError: it cannot be imported or called."""
    return cast(Weigher, _function(settings))


def _function(settings: CustomObjective | CustomCorrection) -> Callable[[TokenBatch], Any]:
    module_name, _, name = settings.function.partition(":")
    if settings.path:
        if not Path(settings.path).is_dir():
            raise ValueError(f"path is {settings.path!r}, which is no directory")
        sys.path.insert(0, settings.path)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise ValueError(
            f"import is {settings.function!r}, and module {module_name!r} cannot be imported: {error}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"import is {settings.function!r}, and {module.__file__} has no function {name!r}")
    try:
        inspect.signature(function).bind(object(), **settings.settings)
    except TypeError as error:
        raise ValueError(
            f"{settings.function} is called with a TokenBatch and its settings, and takes others: {error}"
        ) from error
    return partial(function, **settings.settings)
