"""Copies from the device to the host that a graph would make on a GPU.

No GPU is needed: the wheel registers its kernels, and with them which arguments lie in
host memory. The one adapter to TensorFlow's registry of kernels; checked against 2.21.
"""

from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.framework import kernels, op_def_registry

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_BRANCHES = {
    "If": ("then_branch", "else_branch"),
    "StatelessIf": ("then_branch", "else_branch"),
    "Case": (),
    "StatelessCase": (),
    "While": ("cond", "body"),
    "StatelessWhile": ("cond", "body"),
}


class Source(NamedTuple):
    """Where a tensor comes from."""

    name: str
    on_host: bool


def device_to_host_edges(function: tf.types.experimental.ConcreteFunction) -> list[str]:
    """Return `"producer -> consumer"` for each tensor that is copied to the host.

    A tensor that several operations need there is copied once. Calls are inlined, as
    TensorFlow does; what XLA compiles is one operation of the device. Both branches of
    a condition count, and its predicate.

    Args:
        function: The traced function.
    """
    library = function.graph.as_graph_def().library.function
    walk = _Walk({f.signature.name: f for f in library})
    sources = [
        Source(f"input {i}", tensor.dtype == tf.int32)
        for i, tensor in enumerate(function.graph.inputs)
    ]
    walk.enter(function.function_def, sources, "")
    return list(walk.edges.values())


class _Walk:
    def __init__(self, library):
        self._library, self.edges = library, {}

    def enter(self, function, sources, scope):
        """Follow one function; return the sources of its results."""
        known = {
            arg.name: [source]
            for arg, source in zip(function.signature.input_arg, sources, strict=True)
        }
        nodes = {node.name: node for node in function.node_def}
        for name in _in_order(nodes):
            outputs = self._run(nodes[name], known, scope)
            for argument, tensors in outputs.items():
                known[f"{name}:{argument}"] = tensors
        return [
            _find(known, function.ret[result.name])
            for result in function.signature.output_arg
        ]

    def _run(self, node, known, scope):
        inputs = [_find(known, i) for i in node.input if not i.startswith("^")]
        op = op_def_registry.get(node.op)
        names = [n for arg in op.input_arg for n in [arg.name] * _length(arg, node)]
        outputs = [(arg, _length(arg, node)) for arg in op.output_arg]
        name = f"{scope}{node.name}"
        if node.op in _CALLS and not node.attr["_XlaMustCompile"].b:
            results = self._call(node.attr["f"].func.name, inputs, f"{name}/")
            return _split(results, outputs)
        if node.op in _BRANCHES:
            return _split(self._branch(node, inputs, name), outputs)
        is_call = node.op in _CALLS
        kernel = None if is_call else _kernel(node)
        on_host = set() if kernel is None else set(kernel.host_memory_arg)
        for argument, source in zip(names, inputs, strict=True):
            type_ = _types(op, node).get(argument)
            if type_ == [tf.resource.as_datatype_enum]:
                continue
            if not is_call and (kernel is None or argument in on_host):
                self._need_on_host(source, f"{name} ({node.op})")
        return {
            arg.name: [
                Source(
                    f"{name}:{arg.name}:{i} ({node.op})",
                    self._lies_on_host(arg, kernel, is_call),
                )
                for i in range(length)
            ]
            for arg, length in outputs
        }

    def _lies_on_host(self, argument, kernel, is_call):
        if is_call:
            return False
        return kernel is None or argument.name in kernel.host_memory_arg

    def _need_on_host(self, source, consumer):
        if not source.on_host:
            self.edges.setdefault(source.name, f"{source.name} -> {consumer}")

    def _call(self, name, inputs, scope):
        return self.enter(self._library[name], inputs, scope)

    def _branch(self, node, inputs, name):
        if node.op in ("While", "StatelessWhile"):
            (done,) = self._call(node.attr["cond"].func.name, inputs, f"{name}/cond/")
            self._need_on_host(done, f"{name} ({node.op})")
            return self._call(node.attr["body"].func.name, inputs, f"{name}/body/")
        self._need_on_host(inputs[0], f"{name} ({node.op})")
        functions = [node.attr[b].func for b in _BRANCHES[node.op]]
        functions += node.attr["branches"].list.func
        of_branches = [
            self._call(f.name, inputs[1:], f"{name}/{i}/")
            for i, f in enumerate(functions)
        ]
        return of_branches[0]


def _in_order(nodes):
    """Names of nodes, each after those that it reads."""
    done, order = set(), []
    for start in nodes:
        stack = [start]
        while stack:
            name = stack[-1]
            before = {i.lstrip("^").split(":")[0] for i in nodes[name].input}
            missing = [b for b in before if b in nodes and b not in done]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if name not in done:
                done.add(name)
                order.append(name)
    return order


def _find(known, name):
    if name in known:  # an argument of the function
        return known[name][0]
    node, argument, number = name.split(":")
    return known[f"{node}:{argument}"][int(number)]


def _length(argument, node):
    if argument.number_attr:
        return node.attr[argument.number_attr].i
    if argument.type_list_attr:
        return len(node.attr[argument.type_list_attr].list.type)
    return 1


def _types(op, node):
    types = {}
    for arg in op.input_arg:
        if arg.type_list_attr:
            types[arg.name] = list(node.attr[arg.type_list_attr].list.type)
        elif arg.type_attr:
            types[arg.name] = [node.attr[arg.type_attr].type]
        else:
            types[arg.name] = [arg.type]
    return types


def _split(results, outputs):
    """Results one by one as those of the arguments of an operation."""
    results, split = list(results), {}
    for argument, length in outputs:
        split[argument.name], results = results[:length], results[length:]
    return split


def _kernel(node):
    registered = kernels.get_registered_kernels_for_op(node.op).kernel
    for device in ("GPU", "DEFAULT"):
        for kernel in registered:
            if kernel.device_type == device and _matches(kernel, node):
                return kernel
    return None


def _matches(kernel, node):
    for constraint in kernel.constraint:
        value = node.attr[constraint.name]
        types = list(value.list.type) or [value.type]
        if not set(types) <= set(constraint.allowed_values.list.type):
            return False
    return True
