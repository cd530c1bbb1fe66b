"""The `graph` architecture: a torch.fx graph of listed layers as JSON, the form of every produced checkpoint.

    {"nodes": [{"name": "features.0", "type": "Conv2d", "kwargs": {...}, "inputs": ["input"]}, ...],
     "output": "classifier.6"}

A node has one input, a join (Add, Subtract, Multiply, Concat) several. Names become submodule paths, and fx writes them
into generated code: hence the strict grammar below.
"""

import keyword
import re
from typing import Any

from torch import fx, nn

from neusemslice.errors import ArchitectureError
from neusemslice.layer_types import show, suggest
from neusemslice.layers import build_layer, describe_layer

INPUT = "input"
_NODE_FIELDS = ("name", "type", "kwargs", "inputs")
_ATOM = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}|[0-9]{1,9}", re.ASCII)
_MAX_DEPTH = 20
_INPUTS = {"Add": (2, 2), "Subtract": (2, 2), "Multiply": (2, 2), "Concat": (1, 1000)}
_TAKEN = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))


def build_graph(kwargs: dict[str, Any]) -> fx.GraphModule:
    """The network of a graph description, with its layers at the paths their nodes are named by.

    Raises:
        ArchitectureError: a node is malformed, names clash, or an input is no earlier node.
    """
    for field in ("nodes", "output"):
        if field not in kwargs:
            raise ArchitectureError(f"kwargs lacks {field}.", where="kwargs", hint="A graph has nodes and output.")
    if unknown := kwargs.keys() - {"nodes", "output"}:
        raise ArchitectureError(
            f"kwargs has {show(min(unknown))}.", where="kwargs", hint="A graph has nodes and output."
        )
    if not isinstance(kwargs["nodes"], list):
        raise ArchitectureError(f"kwargs.nodes is {show(kwargs['nodes'])}.", where="kwargs.nodes", hint="Give a list.")
    graph = fx.Graph()
    values = {INPUT: graph.placeholder(INPUT)}
    root = nn.Module()
    for number, node in enumerate(kwargs["nodes"]):
        where = f"kwargs.nodes[{number}]"
        name, sources = _check_node(node, values.keys(), where)
        layer = build_layer({field: node[field] for field in ("type", "kwargs") if field in node}, where)
        place_layer(root, name, layer, f"{where}.name")
        values[name] = graph.call_module(name, tuple(values[source] for source in sources))
    output = kwargs["output"]
    if not isinstance(output, str) or output not in values or output == INPUT:
        raise ArchitectureError(
            f"kwargs.output is {show(output)}, which is no node.", where="kwargs.output", hint="Name one of the nodes."
        )
    graph.output(values[output])
    return fx.GraphModule(root, graph)


def describe_graph(network: fx.GraphModule) -> dict[str, Any]:
    """The inverse of `build_graph`, for nodes that are one placeholder, layers of values alone, and one output.

    Raises:
        ArchitectureError: a node is something else, or its layer cannot be described.
    """
    names: dict[fx.Node, str] = {}
    nodes = []
    for node in network.graph.nodes:
        if node.op == "placeholder" and not names:
            names[node] = INPUT
        elif node.op == "call_module":
            sources = [names[source] for source in _inputs(node)]
            nodes.append({"name": node.target, **_describe_leaf(network, node), "inputs": sources})
            names[node] = node.target
        elif node.op == "output":
            return {"nodes": nodes, "output": names[_inputs(node)[0]]}
        else:
            raise _unwritable(node)
    raise ArchitectureError("The graph has no output.", where="output", hint="Trace the network again.")


def place_layer(root: nn.Module, path: Any, layer: nn.Module, where: str) -> None:
    """Make `layer` the submodule of `root` at a dotted path, with plain modules in between.

    Raises:
        ArchitectureError: the path is no dotted name, hides an attribute of torch's modules, or is taken.
    """
    atoms = path.split(".") if isinstance(path, str) else []
    lawful = all(_ATOM.fullmatch(atom) and not keyword.iskeyword(atom) for atom in atoms)
    if not 1 <= len(atoms) <= _MAX_DEPTH or not lawful or path == INPUT:
        raise ArchitectureError(
            f"{where} is {show(path)}.",
            where=where,
            hint="Use identifiers or numbers joined by dots, such as 'features.0'.",
        )
    if hidden := _TAKEN.intersection(atoms):
        raise ArchitectureError(
            f"{where} is {show(path)}, and {min(hidden)!r} is an attribute of every module.",
            where=where,
            hint="Rename it.",
        )
    parent = root
    for atom in atoms[:-1]:
        if not hasattr(parent, atom):
            parent.add_module(atom, nn.Module())
        parent = getattr(parent, atom)
        if type(parent) is not nn.Module:
            break
    layer_inside_layer = parent is not root and type(parent) is not nn.Module
    if layer_inside_layer or hasattr(parent, atoms[-1]):
        raise ArchitectureError(
            f"{where} is {path!r}, which is taken.", where=where, hint="Give each layer its own path."
        )
    parent.add_module(atoms[-1], layer)


def _check_node(node: Any, known: Any, where: str) -> tuple[Any, list[str]]:
    """Name and inputs of a node."""
    if not isinstance(node, dict):
        raise ArchitectureError(f"{where} is {show(node)}.", where=where, hint=f"Give {', '.join(_NODE_FIELDS)}.")
    if unknown := [field for field in node if field not in _NODE_FIELDS]:
        raise ArchitectureError(
            f"{where} has {show(unknown[0])}.", where=where, hint=suggest(str(unknown[0]), list(_NODE_FIELDS))
        )
    inputs = node.get("inputs")
    least, most = _INPUTS.get(str(node.get("type")), (1, 1))
    if (
        not isinstance(inputs, list)
        or not all(isinstance(name, str) for name in inputs)
        or not least <= len(inputs) <= most
    ):
        wanted = "exactly one node" if most == 1 else f"{least} or more nodes" if most > least else f"{least} nodes"
        raise ArchitectureError(
            f"{where}.inputs is {show(inputs)}.", where=f"{where}.inputs", hint=f'Name {wanted}, or "input".'
        )
    for name in inputs:
        if name not in known:
            raise ArchitectureError(
                f"{where}.inputs names {show(name)}, which is no earlier node.",
                where=f"{where}.inputs",
                hint='Name a node that stands before this one, or "input".',
            )
    return node.get("name"), list(inputs)


def _inputs(node: fx.Node) -> list[fx.Node]:
    sources = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if not sources or len(sources) != len(node.args) or node.kwargs:
        raise _unwritable(node)
    return sources


def _unwritable(node: fx.Node) -> ArchitectureError:
    return ArchitectureError(
        f"Node {node.name!r} ({node.op} {node.target}) cannot be written as data.",
        where=node.name,
        hint="A network can be written when it is a graph of listed layers of values alone.",
    )


def _describe_leaf(network: fx.GraphModule, node: fx.Node) -> dict[str, Any]:
    try:
        return describe_layer(network.get_submodule(str(node.target)))
    except ArchitectureError as error:
        raise ArchitectureError(f"Node {node.name!r}: {error.message}", where=node.name, hint=error.hint) from error
