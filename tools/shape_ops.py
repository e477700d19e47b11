"""Compares one operation of a network at one shape, forward and both gradients, with NumPy in float64.

`soak_shapes.py` runs it in a child process, which a faulty kernel may crash.
"""

import contextlib
import ctypes
import functools
import json
import os
import sys

import numpy as np
import tensorflow as tf

ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-8}  # relative error of one rounding
ACCUMULATION = 8 * 2.0**-24  # error per summed term of standard normal products, in float32


def windows(size, kernel, stride, padding, dilation=1):
    """Returns the number of windows along one axis, and the padding before and after it."""
    reach = (kernel - 1) * dilation + 1
    if padding == "VALID":
        return (size - reach) // stride + 1, 0, 0
    number = -(-size // stride)
    total = max((number - 1) * stride + reach - size, 0)
    return number, total // 2, total - total // 2


def taps(x, case, fill=0.0):
    """Pads x and lists, for each position in the kernel, the view of x that it covers in all windows."""
    stride, dilation = case["stride"], case.get("dilation", 1)
    axes = [
        windows(size, k, stride, case["padding"], dilation)
        for size, k in zip(x.shape[1:3], case["kernel"], strict=True)
    ]
    (height, *rows), (width, *columns) = axes
    padded = np.pad(x, ((0, 0), rows, columns, (0, 0)), constant_values=fill)
    views = {}
    for i, j in np.ndindex(*case["kernel"]):
        top, left = i * dilation, j * dilation
        bottom, right = top + (height - 1) * stride + 1, left + (width - 1) * stride + 1
        views[i, j] = padded[:, top:bottom:stride, left:right:stride]
    inside = padded[:, rows[0] : rows[0] + x.shape[1], columns[0] : columns[0] + x.shape[2]]
    return views, inside


def convolve(x, kernel, dy, case):
    """Computes y, dx and dw of a convolution; kernel (h, w, inputs, outputs), zero between groups."""
    views, _ = taps(x, case)
    gradients, dx = taps(np.zeros_like(x), case)
    dw, y = np.zeros_like(kernel), 0.0
    for at, view in views.items():
        y = y + view @ kernel[at]
        dw[at] = np.tensordot(view, dy, ([0, 1, 2], [0, 1, 2]))
        gradients[at] += dy @ kernel[at].T
    return y, dx, dw


@functools.cache
def accumulates_in_16_bits():
    """Returns whether this CPU rounds each partial sum of a bfloat16 convolution to 16 bits.

    CPUs without bfloat16 in oneDNN, such as those with AVX2, do so: in measurements, the error of a filter
    gradient grows with the number of summed terms, up to some 1,000, instead of with its root.
    """
    x, dy = tf.cast(np.random.default_rng(0).standard_normal((2, 1, 256, 1, 8)), tf.bfloat16)
    ones = {"strides": [1, 1, 1, 1], "padding": "VALID"}
    dw = tf.raw_ops.Conv2DBackpropFilter(
        input=x, filter_sizes=[1, 1, 8, 8], out_backprop=dy, **ones
    )
    exact = tf.einsum("nhwi,nhwo->io", tf.cast(x, tf.float64), tf.cast(dy, tf.float64))
    error = np.abs(tf.cast(dw[0, 0], tf.float64) - exact).max()
    return bool(error > 3 * ROUNDING["bfloat16"] * 256**0.5)


class Operations:
    """Draws numbers, runs operations and compares them; `failed` lists what differed.

    Args:
        case: dict of `op`, `dtype`, `batch`, `height`, `width`, `inputs`, `outputs`, and attributes of `op`.
    """

    def __init__(self, case):
        self.case, self.dtype, self.failed = case, case["dtype"], []
        self.random = np.random.default_rng(case.get("seed", 0))
        self.shape = [case[name] for name in ("batch", "height", "width", "inputs")]

    def draw(self, *shape):
        """Draws standard normal numbers, rounded to the dtype, as a tensor and as a float64 array."""
        tensor = tf.cast(self.random.standard_normal(shape, np.float32), self.dtype)
        return tensor, tf.cast(tensor, tf.float64).numpy()

    def check(self, name, expected, terms, **arguments):
        """Runs `tf.raw_ops.<name>` and compares every output that is expected.

        Args:
            name: str, of the operation.
            expected: float64 array, or list of them.
            terms: int, numbers that are summed for one number of the output.
            **arguments: of the operation.
        """
        # Lets the parent know which operation crashed this process.
        print("run", name, flush=True)
        try:
            outputs = getattr(tf.raw_ops, name)(**arguments)
        except tf.errors.OpError as error:
            self.failed.append(
                f"{name} raises {type(error).__name__}: {error.message.splitlines()[0]}"
            )
            return
        if not isinstance(expected, list):
            outputs, expected = [outputs], [expected]
        for k, (output, wanted) in enumerate(zip(outputs, expected, strict=False)):
            got = tf.cast(output, tf.float64).numpy()
            if got.shape != wanted.shape:
                self.failed.append(f"{name}[{k}] has shape {got.shape}, not {wanted.shape}")
                continue
            allowed = 2 * ROUNDING[self.dtype] * np.abs(wanted) + ACCUMULATION * terms
            if self.dtype == "bfloat16":  # some kernels accumulate in 16 bits
                grows = 2 * terms if accumulates_in_16_bits() else np.sqrt(terms)
                allowed += ROUNDING[self.dtype] * grows
            wrong = ~(np.abs(got - wanted) <= allowed)
            if wrong.any():
                worst = np.max(np.where(np.isfinite(got), np.abs(got - wanted) / allowed, np.inf))
                self.failed.append(
                    f"{name}[{k}]: {wrong.sum()} of {wrong.size} numbers differ, the largest error "
                    f"{worst:.1f} times the allowed one"
                )

    def Conv2D(self):
        case = self.case
        groups, (rows, columns) = case.get("groups", 1), case["kernel"]
        inputs, outputs = case["inputs"], case["outputs"]
        each = inputs // groups
        w, kernel = self.draw(rows, columns, each, outputs)
        blocks = np.zeros((rows, columns, inputs, outputs))
        part = [
            np.s_[
                :, :, g * each : (g + 1) * each, outputs // groups * g : outputs // groups * (g + 1)
            ]
            for g in range(groups)
        ]
        for block in part:
            blocks[block] = kernel[..., block[-1]]
        self._convolution(
            "Conv2D{}", w, blocks, lambda dw: np.concatenate([dw[b] for b in part], -1), "filter"
        )

    def DepthwiseConv2dNative(self):
        (rows, columns), inputs = self.case["kernel"], self.case["inputs"]
        times = self.case.get("multiplier", 1)
        w, kernel = self.draw(rows, columns, inputs, times)
        blocks = np.zeros((rows, columns, inputs, inputs * times))
        for c in range(inputs):
            blocks[:, :, c, c * times : (c + 1) * times] = kernel[:, :, c]

        def pick(dw):
            dw = dw.reshape(rows, columns, inputs, inputs, times)
            return np.stack([dw[:, :, c, c] for c in range(inputs)], 2)

        self._convolution("DepthwiseConv2dNative{}", w, blocks, pick, "filter")

    def _convolution(self, name, w, kernel, pick, argument):
        case, dilation = self.case, self.case.get("dilation", 1)
        x, x64 = self.draw(*self.shape)
        sides = [
            windows(size, k, case["stride"], case["padding"], dilation)[0]
            for size, k in zip(self.shape[1:3], case["kernel"], strict=True)
        ]
        dy, dy64 = self.draw(self.shape[0], *sides, kernel.shape[-1])
        y, dx, dw = convolve(x64, kernel, dy64, case)
        common = {
            "strides": [1, case["stride"], case["stride"], 1],
            "padding": case["padding"],
            "dilations": [1, dilation, dilation, 1],
        }
        taken = int(np.prod(case["kernel"])) * w.shape[2]
        self.check(name.format(""), y, taken, input=x, filter=w, **common)
        self.check(
            name.format("BackpropInput"), dx, taken * kernel.shape[-1] // w.shape[2],
            input_sizes=self.shape, filter=w, out_backprop=dy, **common,
        )  # fmt: skip
        self.check(
            name.format("BackpropFilter"), pick(dw), dy64[..., 0].size,
            input=x, filter_sizes=w.shape, out_backprop=dy, **common,
        )  # fmt: skip

    def _pooling(self):
        common = {
            "ksize": [1, *self.case["kernel"], 1],
            "strides": [1, self.case["stride"], self.case["stride"], 1],
            "padding": self.case["padding"],
        }
        return common, *self.draw(*self.shape)

    def MaxPool(self):
        common, x, x64 = self._pooling()
        views, _ = taps(x64, self.case, -np.inf)
        y64 = np.max(np.stack(list(views.values())), 0)
        self.check("MaxPool", y64, 0, input=x, **common)
        _, dy64 = self.draw(*y64.shape)
        # If two pixels are equal, either may get the gradient, so their gradient is 0.
        dy64 = dy64 * (np.sum([view == y64 for view in views.values()], 0) == 1)
        gradients, dx = taps(np.zeros_like(x64), self.case)
        for at, view in views.items():
            gradients[at] += dy64 * (view == y64)
        y, dy = (tf.cast(a, self.dtype) for a in (y64, dy64))
        # Each partial sum is rounded to 16 bits, even if the final sum is small.
        terms = 36 * int(np.prod(self.case["kernel"]))
        self.check("MaxPoolGrad", dx, terms, orig_input=x, orig_output=y, grad=dy, **common)

    def AvgPool(self):
        common, x, x64 = self._pooling()
        views, _ = taps(x64, self.case)
        counts, _ = taps(np.ones_like(x64), self.case)
        count = sum(counts.values())
        y64 = sum(views.values()) / count
        terms = int(np.prod(self.case["kernel"]))
        self.check("AvgPool", y64, terms, value=x, **common)
        dy, dy64 = self.draw(*y64.shape)
        gradients, dx = taps(np.zeros_like(x64), self.case)
        for view in gradients.values():
            view += dy64 / count
        self.check("AvgPoolGrad", dx, terms, orig_input_shape=self.shape, grad=dy, **common)

    def MatMul(self):
        rows, inner, columns = (self.case[name] for name in ("batch", "inputs", "outputs"))
        a, a64 = self.draw(rows, inner)
        b, b64 = self.draw(inner, columns)
        dy, dy64 = self.draw(rows, columns)
        self.check("MatMul", a64 @ b64, inner, a=a, b=b)
        self.check("MatMul", dy64 @ b64.T, columns, a=dy, b=b, transpose_b=True)
        self.check("MatMul", a64.T @ dy64, rows, a=a, b=dy, transpose_a=True)

    def BatchMatMulV2(self):
        rows, inner, columns = (self.case[name] for name in ("batch", "inputs", "outputs"))
        many = [
            [self.case["height"], self.case["width"]][: rank - 2] for rank in self.case["ranks"]
        ]
        x, x64 = self.draw(*many[0], rows, inner)
        y, y64 = self.draw(*many[1], inner, columns)
        product = x64 @ y64
        dy, dy64 = self.draw(*product.shape)
        self.check("BatchMatMulV2", product, inner, x=x, y=y)
        if many[0] != many[1]:
            return  # the gradients are sums of such products
        self.check("BatchMatMulV2", dy64 @ y64.swapaxes(-1, -2), columns, x=dy, y=y, adj_y=True)
        self.check("BatchMatMulV2", x64.swapaxes(-1, -2) @ dy64, rows, x=x, y=dy, adj_x=True)

    def FusedBatchNormV3(self):
        x, x64 = self.draw(*self.shape)
        dy, dy64 = self.draw(*self.shape)
        gamma, beta = self.random.standard_normal((2, self.shape[-1]), np.float32)
        n = x64[..., 0].size
        mean, variance = x64.mean((0, 1, 2)), x64.var((0, 1, 2))
        root = np.sqrt(variance + 1e-3)
        unit = (x64 - mean) / root
        nothing = tf.zeros(0)
        terms = 100 + 4 * int(np.sqrt(n))  # the error of the mean affects all numbers
        self.check(
            "FusedBatchNormV3", [unit * gamma + beta, mean, variance * n / max(n - 1, 1)], terms,
            x=x, scale=gamma, offset=beta, mean=nothing, variance=nothing, epsilon=1e-3,
        )  # fmt: skip
        by_gamma, by_beta = (dy64 * unit).sum((0, 1, 2)), dy64.sum((0, 1, 2))
        dx = gamma / root * (dy64 - by_beta / n - unit * by_gamma / n)
        *_, kept, inverse, rest = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=nothing, variance=nothing, epsilon=1e-3
        )
        self.check(
            "FusedBatchNormGradV3", [dx, by_gamma, by_beta], n + 100, y_backprop=dy, x=x, scale=gamma,
            reserve_space_1=kept, reserve_space_2=inverse, reserve_space_3=rest, epsilon=1e-3,
        )  # fmt: skip

    def planted_abort(self):
        print("run planted_abort", flush=True)
        os.abort()

    def planted_overflow(self):
        """Writes one byte past the end of its memory, which only a checked heap detects."""
        print("run planted_overflow", flush=True)
        python = ctypes.pythonapi
        python.PyMem_RawMalloc.restype = ctypes.c_void_p
        memory = ctypes.c_void_p(python.PyMem_RawMalloc(ctypes.c_size_t(20)))
        ctypes.memset(memory, 1, 21)  # harmless: malloc gives 24
        python.PyMem_RawFree(memory)

    def planted_difference(self):
        x, x64 = self.draw(*self.shape)
        x64[0, 0, 0, 0] += 0.1
        self.check("Identity", x64, 0, input=x)


def main(threads):
    """Reads cases as lines of JSON from stdin, and responds to each with a line of JSON."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    print("ready", flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        for _ in range(case.get("repeat", 1)):
            operations = Operations(case)
            getattr(operations, case["op"])()
        print("done", json.dumps(operations.failed), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(int(sys.argv[1]))
