"""Lists the operations in the traced graphs of the zoo's networks."""

import collections
import json

import task_samples
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.tasks import TASKS

FAMILIES = {
    "Conv2D": "Conv2D",
    "Conv2DBackpropInput": "Conv2D",  # a transposed convolution is the gradient of one
    "DepthwiseConv2dNative": "DepthwiseConv2dNative",
    "MaxPool": "MaxPool",
    "AvgPool": "AvgPool",
    "MatMul": "MatMul",
    "BatchMatMulV2": "BatchMatMulV2",
    "FusedBatchNormV3": "FusedBatchNormV3",
}
SUSPICIOUS = ("Conv", "Pool", "MatMul", "BatchNorm", "Einsum")


def graphs():
    """Yields the name and graph of two encoders, and of every task with its losses."""
    shape = (32, 32, 3)
    for stem, first in (("small", None), ("imagenet", kssl.layers.Sobel())):
        encoder = kssl.encoders.resnet(shape, 4, (1, 1), stem, preprocessing=first)
        call = tf.function(encoder, autograph=False)
        pixels = tf.TensorSpec((None, *shape))
        yield f"resnet, {stem} stem", call.get_concrete_function(pixels, training=True).graph

    for row in TASKS:
        encoder = row.task.architecture(shape, 4, (1, 1))
        task = row.task(encoder, **task_samples.required(row.task, encoder))
        task.compile("sgd")
        columns = task_samples.sample(task.needs).element_spec
        batch = {name: tf.TensorSpec((None, *c.shape), c.dtype) for name, c in columns.items()}

        def step(batch, seed, task=task):
            x, y = task.pretext(batch, seed)
            y_pred = task(x, training=True)
            if getattr(task, "discriminator", None) is not None:
                task.discriminator(task.discriminator_inputs(x, y, y_pred)[0], training=True)
            return task.compute_loss(x, y, y_pred)

        seeds = tf.TensorSpec((None, 2), tf.int64)
        traced = tf.function(step, autograph=False).get_concrete_function(batch, seeds)
        yield row.name, traced.graph


def kind(node, shapes):
    """Returns the attributes of an operation that do not depend on the sizes of its tensors.

    Args:
        node: NodeDef.
        shapes: shapes of its inputs, for convolutions and batched matrix products.
    """
    name, attributes = FAMILIES[node.op], node.attr
    result = {"op": name}
    if name == "BatchMatMulV2":
        result["ranks"] = [shape.rank for shape in shapes]
    if "strides" in attributes:
        result["stride"] = max(attributes["strides"].list.i)
        result["padding"] = attributes["padding"].s.decode()
        sides = attributes["ksize"].list.i[1:3] if "Pool" in name else shapes[1][:2]
        result["kernel"] = [int(side) for side in sides]
        dilation = max(attributes["dilations"].list.i, default=1)
        result |= {"dilation": dilation} if dilation > 1 else {}
    return result


def zoo():
    """Returns a dict from every kind of operation in the zoo, as JSON, to the names of the networks with it.

    Raises:
        ValueError: a network has an operation that this tool does not know.
    """
    kinds = collections.defaultdict(list)
    for name, graph in graphs():
        # The bodies of loops and the like are separate graphs.
        functions = graph.as_graph_def().library.function
        inner = [graph._get_function(function.signature.name).graph for function in functions]
        operations = [o for one in (graph, *inner) for o in one.get_operations()]
        for node, shapes in [(o.node_def, [i.shape for i in o.inputs]) for o in operations]:
            if node.op in FAMILIES:
                key = json.dumps(kind(node, shapes))
                kinds[key] += [name] if name not in kinds[key] else []
            elif any(word in node.op for word in SUSPICIOUS):
                raise ValueError(
                    f"{name} has the operation {node.op}, which tools/soak_shapes.py does not test: "
                    "use another, such as tf.matmul, or add it to FAMILIES and to tools/shape_ops.py"
                )
    return dict(kinds)
