"""Find the arguments of classes that forward keywords to their parents."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from functools import lru_cache
from inspect import Parameter

NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


@lru_cache
def parameters(cls: type) -> Mapping[str, Parameter] | None:
    """Return the arguments that a class accepts by name; None if it cannot be known.

    ``**kwargs`` stand for the arguments of the next parent if the constructor does
    nothing but forward them, ``super().__init__(..., **kwargs)``.
    """
    found: dict[str, Parameter] = {}
    for parent in cls.__mro__:
        if '__init__' not in vars(parent):
            continue
        if parent is object:
            return found
        constructor = parent.__init__
        try:
            own = list(inspect.signature(constructor).parameters.values())[1:]
        except (TypeError, ValueError):  # written in C
            return None
        for parameter in own:
            if parameter.kind in NAMED:
                found.setdefault(parameter.name, parameter)
        rest = [x.name for x in own if x.kind is Parameter.VAR_KEYWORD]
        if not rest:
            return found
        if not _only_forwards(parent, rest[0]):
            return None
    return found


def function_parameters(*functions: Callable) -> Mapping[str, Parameter]:
    """Return the arguments that functions accept by name."""
    signatures = [inspect.signature(function).parameters for function in functions]
    found = [x for parameters in signatures for x in parameters.values()]
    return {x.name: x for x in found if x.kind in NAMED}


def required(cls: type) -> list[str]:
    """Return the arguments without a default that the constructor itself names."""
    own = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return [x.name for x in own if x.kind in NAMED and x.default is Parameter.empty]


def _only_forwards(cls: type, name: str) -> bool:
    """Return whether ``**name`` is used once, in ``super().__init__(**name)``."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls.__init__)))
    except (OSError, TypeError, SyntaxError):
        return False
    uses = [x for x in ast.walk(tree) if isinstance(x, ast.Name) and x.id == name]
    forwarded = [
        keyword.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and _is_parent_constructor(call.func, cls)
        for keyword in call.keywords
        if keyword.arg is None
    ]
    return len(uses) == 1 and uses[0] in forwarded


def _is_parent_constructor(function: ast.expr, cls: type) -> bool:
    match function:
        case ast.Attribute(
            value=ast.Call(func=ast.Name(id='super'), args=args), attr='__init__'
        ):
            return not args or getattr(args[0], 'id', None) == cls.__name__
    return False
