"""Read the text of a config, as checkpoints have it, without running it."""

import ast
from typing import Any


def literal_settings(text: Any) -> dict[str, Any]:
    """Return the settings in the text of a config that are plain values.

    Args:
        text: Assignments in Python as mmengine writes them: constants, lists, tuples
            and dicts, also as ``dict(...)``. Any other value is left out.

    Returns:
        The settings; none if it is no such text.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return {}
    settings = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                settings[node.targets[0].id] = _evaluate(node.value)
            except ValueError:
                continue
    return settings


def _evaluate(node: ast.expr) -> Any:
    if isinstance(node, ast.List):
        return [_evaluate(x) for x in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_evaluate(x) for x in node.elts)
    if isinstance(node, ast.Dict):
        return {
            _evaluate(key): _evaluate(x)
            for key, x in zip(node.keys, node.values, strict=True)
        }
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict':
        return {word.arg: _evaluate(word.value) for word in node.keywords}
    return ast.literal_eval(node)
