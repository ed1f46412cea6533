"""A model's dataset enters; an ONNX graph that annotates cells leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from streamtrain.atomic import check_output, replacing
from streamtrain.budget import format_bytes
from streamtrain.errors import InputError
from streamtrain.expression import TARGET_SUM

OPSET, IR_VERSION = 15, 8  # what onnxruntime reads since 1.10, of December 2021
_MOST = 2**31 - 2**20  # bytes of a file, by the rules of protobuf
_NORMALIZED = "log1p of counts normalised to 10,000 per cell, over all genes of the cell"
_COUNTS = "raw counts; `total` has the counts of all genes of the cell"


def write(
    dataset: xr.Dataset, path: str | os.PathLike[str], *, normalize: bool, overwrite: bool
) -> None:
    """Do what `Model.to_onnx` documents."""
    check_output(path, overwrite, folder=False)
    if normalize not in (True, False):
        raise InputError(f"normalize must be True or False; got {normalize!r}")
    size = sum(dataset[name].nbytes for name in ("coef", "mean", "scale"))
    if size > _MOST:
        raise InputError(
            f"an ONNX file holds 2 GiB at most, and the model has {format_bytes(size)}: keep some "
            "of its cell types (subset), or train on fewer genes (gene_list)"
        )
    try:
        import onnx  # noqa: F401 - `graph` imports from it
    except ImportError as error:
        raise InputError(
            "ONNX graphs are written by the package onnx: pip install 'streamtrain[onnx]'"
        ) from error
    content = graph(dataset, normalize=bool(normalize)).SerializeToString()
    with replacing(path, overwrite, folder=False) as partial:
        partial.write_bytes(content)


@dataclass
class _Nodes:
    """Nodes and constants so far; each node is called for, and named by, what it gives."""

    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def constant(self, name: str, values: Any) -> str:
        """Add an array, or texts, under a name."""
        from onnx import TensorProto, helper, numpy_helper

        array: NDArray[Any] = np.asarray(values)
        if array.dtype == object:
            texts = [text.encode() for text in array]
            self.constants.append(helper.make_tensor(name, TensorProto.STRING, array.shape, texts))
        else:
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            self.constants.append(numpy_helper.from_array(little, name))
        return name

    def double(self, name: str, values: Any) -> str:
        """Add an array in its own precision, which is that of the file, for use in float64."""
        array = np.asarray(values)
        if array.dtype == np.float64:
            return self.constant(name, array)
        return self.node("Cast", [self.constant(f"{name}_stored", array)], name, to=_DOUBLE)

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add an operator."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output


_FLOAT, _DOUBLE = 1, 11  # onnx.TensorProto's numbers


def graph(dataset: xr.Dataset, *, normalize: bool) -> Any:
    """Make the graph, an onnx.ModelProto.

    Of each cell z = min((x - mean) / scale, 10), 0 where x is NaN; scores = z W' + b; the
    probability is the sigmoid of a score or, calibrated, the softmax of scores / temperature.

    Parameters
    ----------
    dataset
        Of a `Model`.
    normalize
        Whether the input is counts.
    """
    from onnx import TensorProto, helper

    made = _Nodes()
    x = made.node("Cast", ["X"], "expression" if not normalize else "counts", to=_DOUBLE)
    if normalize:
        x = _normalized(made, x)
    z = x
    if dataset.attrs["with_mean"]:
        z = made.node("Sub", [x, made.double("mean", dataset["mean"])], "centred")
    z = made.node("Div", [z, made.double("scale", dataset["scale"])], "scaled")
    z = made.node("Min", [z, made.constant("most", np.float64(10))], "clipped")
    nothing = made.constant("nothing", np.float64(0))
    # Asked of X itself: ONNX's Min is free in what it makes of NaN.
    lacking = made.node("IsNaN", ["X"], "lacking")
    z = made.node("Where", [lacking, nothing, z], "known")
    weights = made.double("weights", np.ascontiguousarray(dataset["coef"].to_numpy().T))
    scores = made.node("MatMul", [z, weights], "weighed")
    scores = made.node("Add", [scores, made.double("intercept", dataset["intercept"])], "decision")
    types = dataset["cell_type"].to_numpy().astype(object)
    best = made.node("ArgMax", [scores], "best", axis=1, keepdims=0)
    made.node("Gather", [made.constant("cell_types", types), best], "label", axis=0)
    made.node("Cast", [scores], "scores", to=_FLOAT)
    made.node("Cast", [_probabilities(made, scores, dataset)], "probabilities", to=_FLOAT)

    n_types, n_genes = dataset["coef"].shape
    tensor = helper.make_tensor_value_info
    inputs = [tensor("X", TensorProto.FLOAT, ["cells", n_genes])]
    inputs += [tensor("total", TensorProto.FLOAT, ["cells", 1])] * normalize
    outputs = [
        tensor("label", TensorProto.STRING, ["cells"]),
        tensor("probabilities", TensorProto.FLOAT, ["cells", n_types]),
        tensor("scores", TensorProto.FLOAT, ["cells", n_types]),
    ]
    model = helper.make_model(
        helper.make_graph(made.nodes, "cell_types", inputs, outputs, made.constants),
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
        producer_name="streamtrain", producer_version=version("streamtrain"),
    )  # fmt: skip
    helper.set_model_props(model, _metadata(dataset, normalize))
    return model


def _normalized(made: _Nodes, counts: str) -> str:
    """log1p(counts / total * 10,000), 0 for a cell without counts, as where cells are read."""
    least = made.constant("least", np.float64(np.finfo(np.float64).tiny))
    total = made.node("Cast", ["total"], "total_given", to=_DOUBLE)
    total = made.node("Max", [total, least], "total_above_0")
    share = made.node("Div", [counts, total], "share")
    share = made.node("Mul", [share, made.constant("target", np.float64(TARGET_SUM))], "normalised")
    one = made.node("Add", [share, made.constant("one", np.float64(1))], "plus_one")
    return made.node("Log", [one], "expression")


def _probabilities(made: _Nodes, scores: str, dataset: xr.Dataset) -> str:
    calibration = dataset.attrs.get("calibration")
    if calibration is None:
        return made.node("Sigmoid", [scores], "sigmoid")
    temperature = made.constant("temperature", np.float64(calibration["temperature"]))
    cooled = made.node("Div", [scores, temperature], "cooled")
    return made.node("Softmax", [cooled], "softmax", axis=1)


def _metadata(dataset: xr.Dataset, normalize: bool) -> dict[str, str]:
    return {
        "genes": json.dumps(dataset["gene"].to_numpy().tolist(), ensure_ascii=False),
        "cell_types": json.dumps(dataset["cell_type"].to_numpy().tolist(), ensure_ascii=False),
        "calibration": json.dumps(dataset.attrs.get("calibration")),
        "normalize": f"X: {_COUNTS if normalize else _NORMALIZED}; NaN for genes that are lacking",
        "description": json.dumps(dataset.attrs["description"]),
        "streamtrain_version": version("streamtrain"),
    }
