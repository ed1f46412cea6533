"""What an atlas says of itself, and whether the command that it ends in works."""

import json
import shlex
from dataclasses import asdict
from itertools import pairwise

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import streamtrain
from streamtrain import DataInspection, InputError, Model, cli, inspect
from streamtrain.inspecting import matrices
from streamtrain.inspecting.columns import group_rank, is_named_label, label_rank
from streamtrain.inspecting.genes import kind_of_names
from streamtrain.rows import Rows
from streamtrain.sources.csc import CscMatrix
from streamtrain.sources.forms import values_of
from streamtrain.sources.matrix import CsrMatrix
from tests import atlas, servers, stores

DONORS = {"recipe": "atlas", "validation_groups": "donor"}


def make(n_vars=120, **kwargs):
    """The atlas of tests, with genes called by symbols."""
    adata = atlas.make(n_vars=n_vars, **kwargs)
    adata.var = pd.DataFrame(index=[f"CD{j}A" for j in range(n_vars)])
    return adata


def write(adata, tmp_path, form="h5ad"):
    return stores.write(adata, tmp_path, form)


def counted(adata):
    """The same with its counts as X, and no layer."""
    return ad.AnnData(adata.layers["counts"], obs=adata.obs, var=adata.var)


def run(found):
    """Run the command as it is printed, by what a shell makes of the page's last lines."""
    text = str(found).rsplit("\n\n", 1)[1].replace("\\\n", "")
    assert shlex.split(text) == found.command
    assert found.shell == shlex.join(found.command)
    cli.app([*found.command[1:], "--quiet"], result_action="return_value")
    return Model.load(found.command[found.command.index("--out") + 1])


@pytest.mark.parametrize("form", stores.FORMATS)
def test_inspect_data__of_each_format(tmp_path, form):
    found = inspect(write(make(), tmp_path, form))
    assert (found.n_obs, found.n_vars, found.kind) == (600, 120, "AnnData")
    X, counts = found.files[0].matrices
    assert (X.key, counts.key) == ("X", "layers/counts")
    assert (X.kind, counts.kind) == ("log1p of 10,000", "counts")
    assert (X.encoding, X.dtype, X.entries) == ("csr", "float32", counts.entries)
    assert X.density == pytest.approx(X.entries / 600 / 120)
    assert 0 < X.nbytes < 20 * X.entries
    assert (X.shards is not None) == (form == "sharded")
    assert X.chunks is not None
    assert ("gzip" in X.codecs) == (form == "h5ad")
    assert (found.matrix, found.settings) == ("X", DONORS)
    assert (found.labels, found.guessed, found.groups) == ("cell_type", True, "donor")
    assert {c.name: c.n_cells for c in found.classes} == (
        make().obs.cell_type.value_counts().to_dict()
    )
    assert json.loads(json.dumps(asdict(found)))["matrix"] == "X"


def test_inspect_data__the_bytes_on_disk_are_those_of_the_files(tmp_path, monkeypatch):
    for form in ("zarr3", "sharded"):
        path = write(make(n_obs=3000), tmp_path, form)
        files = [f for f in (path / "X").rglob("*") if f.is_file() and "json" not in f.name]
        on_disk = sum(f.stat().st_size for f in files)
        assert inspect(path).files[0].matrices[0].nbytes == on_disk
    # Of many files some tell of the rest.
    monkeypatch.setattr(matrices, "_FILES", 3)
    monkeypatch.setattr(matrices, "_SEEN", 2)
    assert inspect(path).files[0].matrices[0].nbytes == pytest.approx(on_disk, rel=0.3)


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ([[1, 2, 0], [3, 0, 5]], "counts", "raw counts, 6 a cell (median) in 2 entries"),
        (
            np.log1p([[4000, 6000], [9000, 1000]]),
            "log1p of 10,000",
            "log1p of counts normalised to",
        ),
        (np.log1p([[1.5, 0.5], [0.25, 1.75]]), "log1p of another sum", "normalised to 2 a cell"),
        (np.log1p([[400, 60.5], [900, 10]]), "other logarithm", "genes left out since"),
        (np.log1p([[4e5, 60.5], [9e6, 10]]), "other logarithm", "a logarithm of another kind"),
        ([[40.5, 9959.5], [0.25, 9999.75]], "normalised, not logged", "10,000 a cell, without log"),
        (
            [[40.5, 9.5], [0.25, 3.75]],
            "fractions",
            "fractions up to 40.5: counts that were correct",
        ),
        ([[-1.5, 2], [1, 1]], "negative values", "negative values, -1.5 to 2: scaled or corrected"),
        ([[np.nan, 2], [1, 1]], "not finite", "NaN or infinite values"),
        (np.zeros((2, 3)), "no expression", "no expression: all zeros"),
    ],
)
def test_kind_of__values(values, kind, words):
    X = sp.csr_matrix(np.asarray(values, float))
    rows = Rows(X.data, X.indices, X.indptr.astype(np.int64), X.shape[1])
    found, sentence = matrices.kind_of(values_of([rows]))
    assert found == kind
    assert words in sentence


def test_inspect_data__reads_some_hundred_cells_alone(tmp_path, monkeypatch):
    path = write(make(n_obs=5000), tmp_path)
    read = []
    real = CsrMatrix.read
    monkeypatch.setattr(
        CsrMatrix, "read", lambda self, a, b: read.append((self.name, a, b)) or real(self, a, b)
    )
    inspect(path)
    for name in (f"X of {path}", f"layers/counts of {path}"):
        ranges = [(a, b) for of, a, b in read if of == name]
        assert sum(b - a for a, b in ranges) == 512
        assert (ranges[0][0], ranges[-1][1]) == (0, 5000)
        assert all(b <= a for (_, b), (a, _) in pairwise(ranges))


@pytest.mark.parametrize("whole", [True, False])
def test_inspect_data__a_matrix_by_gene_is_not_transposed(tmp_path, monkeypatch, whole):
    adata = make(n_obs=3000)
    adata.X, adata.layers["counts"] = adata.X.tocsc(), adata.layers["counts"].tocsc()
    monkeypatch.setattr(CscMatrix, "_by_row", lambda _: pytest.fail("transposed"))
    monkeypatch.setattr(matrices, "_TRANSPOSED", 10**6 if whole else 0)
    found = inspect(write(adata, tmp_path))
    X, counts = found.files[0].matrices
    assert X.encoding == "csc"
    assert X.kind == ("log1p of 10,000" if whole else "log1p, perhaps of 10,000")
    assert counts.kind == "counts"
    assert found.matrix == "X"
    assert "transposes it through scratch" in str(found)
    assert found.needs[0].scratch > found.needs[0].kept + 12 * X.entries


@pytest.mark.parametrize("part", ["indices", "indptr"])
def test_inspect_data__a_damaged_matrix_by_gene_is_refused(tmp_path, part):
    adata = counted(make())
    adata.X = adata.X.tocsc()
    path = write(adata, tmp_path)
    with h5py.File(path, "r+") as file:
        file[f"X/{part}"][5] = 10**6
    with pytest.raises(InputError, match=r"X of .*atlas.h5ad is damaged: ind"):
        inspect(path)


def test_inspect_data__dense(tmp_path):
    adata = counted(make())
    adata.X = adata.X.toarray()
    matrix = inspect(write(adata, tmp_path)).files[0].matrices[0]
    assert (matrix.encoding, matrix.entries, matrix.kind) == ("dense", 600 * 120, "counts")
    assert matrix.density == pytest.approx(np.mean(adata.X != 0), rel=0.1)


SCALED = np.random.default_rng(0).normal(size=(600, 120)).astype(np.float32)


@pytest.mark.parametrize(
    ("X", "raw", "layer", "matrix", "settings"),
    [
        ("log", None, "counts", "X", {}),
        ("counts", None, None, "X", {"normalize": "log1p"}),
        ("counts", "log", None, "X", {"normalize": "log1p"}),
        ("scaled", "log", "counts", "raw/X", {"layer": "raw"}),
        ("scaled", "counts", "log", "raw/X", {"layer": "raw", "normalize": "log1p"}),
        ("scaled", None, "counts", "layers/l", {"layer": "l", "normalize": "log1p"}),
        ("half", None, "log", "layers/l", {"layer": "l"}),
        ("half", None, None, "X", {"check_expression": False}),
        ("scaled", None, None, "", {}),
    ],
)
def test_inspect_data__takes_the_matrix_that_training_can_use(
    tmp_path, monkeypatch, X, raw, layer, matrix, settings
):
    monkeypatch.chdir(tmp_path)
    of = make()
    log, counts = of.X, of.layers["counts"]
    forms = {"log": log, "counts": counts, "scaled": SCALED, "half": log[:, :60], None: None}
    adata = ad.AnnData(forms[X], obs=of.obs, var=of.var[: 60 if X == "half" else None])
    if raw is not None:
        adata.raw = ad.AnnData(forms[raw], obs=of.obs, var=of.var)
    if layer is not None:
        adata.layers["l"] = forms[layer][:, : adata.n_vars]
    if X == "half" and layer is not None:
        adata.layers["l"] = sp.csr_matrix(atlas.log1p_10k(counts.toarray()[:, :60]))
    found = inspect(write(adata, tmp_path))
    assert found.matrix == matrix
    assert found.settings == settings | DONORS
    if not matrix:
        assert found.command == []
        assert "no matrix can be trained on" in str(found)
    elif X != "counts":
        assert len(run(found).cell_types) == 5


def test_inspect_data__the_command_works_as_printed(tmp_path, monkeypatch):
    """With a path, a column and a layer that a shell takes apart, and cells without a label."""
    (tmp_path / "my $HOME's").mkdir()
    (tmp_path / "model.zarr").mkdir()
    monkeypatch.chdir(tmp_path)
    adata = make()
    adata.obs["cell type"] = adata.obs.pop("cell_type").where(adata.obs.n > 20)
    adata.obs["donor"] = adata.obs["donor"].astype(str)
    adata.layers["the counts"] = adata.layers.pop("counts")
    adata.X = SCALED
    adata.var.index = [str(j) for j in range(120)]
    adata.var["symbol"] = [f"CD{j}A" for j in range(120)]
    path = write(adata, tmp_path / "my $HOME's")
    found = inspect(path, "cell type")
    assert found.unlabelled == 21
    assert not found.guessed
    assert found.settings == {
        "layer": "the counts", "normalize": "log1p", "gene_key": "symbol", "drop_unlabeled": True,
        **DONORS,
    }  # fmt: skip
    model = run(found)
    assert found.command[-1] == "model-1.zarr"
    assert "CD1A" in model.features
    assert model.provenance["n_cells"] == 579


def test_inspect_data__the_least_memory_is_enough(tmp_path):
    adata = counted(make())
    recipe, plain = inspect(write(adata, tmp_path)).needs
    options = {"normalize": "log1p", "progress": False}
    path = tmp_path / "atlas.h5ad"
    streamtrain.train(path, "cell_type", memory=plain.memory, **options)
    with pytest.raises(InputError, match="too small"):
        streamtrain.train(path, "cell_type", memory=plain.memory - 2 * 10**7, **options)
    options |= DONORS
    streamtrain.train(path, "cell_type", memory=recipe.memory, **options)
    with pytest.raises(InputError, match="too small"):
        streamtrain.train(path, "cell_type", memory=recipe.memory - 5 * 10**7, **options)


@pytest.mark.parametrize(
    ("names", "kind", "species"),
    [
        (["ENSG00000141510", "ENSG00000012048.7"], "Ensembl gene ids", "human"),
        (["ENSMUSG00000059552"], "Ensembl gene ids", "mouse"),
        (["GRCh38_ENSG00000141510", "mm10_ENSMUSG00000059552"], "Ensembl gene ids", "human and mo"),
        (["ENSXYZG00000059552"], "Ensembl gene ids", "ENSXYZ"),
        (["ENST00000269305"], "Ensembl transcript ids", "human"),
        (["WBGene00000001"], "Ensembl gene ids", "worm"),
        (["FBgn0000008"], "Ensembl gene ids", "fly"),
        (["CD3E", "MT-CO1", "HLA-DRA", "C1orf112", "AC000123.1"], "symbols", "written as of human"),
        (["Cd3e", "mt-Co1", "H2-K1", "Xkr4", "Gm1992"], "symbols", "written as of mouse or rat"),
        (["0", "1", "2"], "numbered", ""),
        (["gene_0001", "gene_0002"], "numbered", ""),
        (["a b c", "?"], "other", ""),
        ([], "other", ""),
    ],
)
def test_kind_of_names__of_genes(names, kind, species):
    found = kind_of_names(names)
    assert found[0] == kind
    assert found[1].startswith(species)
    assert bool(found[1]) == bool(species)


def test_inspect_data__genes_that_repeat_and_other_names(tmp_path):
    adata = counted(make(n_vars=8))
    adata.var = pd.DataFrame(
        {"feature_name": [f"CD{j}" for j in range(8)], "biotype": ["coding"] * 8},
        index=[f"ENSG0000000000{max(j, 1)}" for j in range(8)],
    )
    found = inspect(write(adata, tmp_path))
    assert (found.genes.kind, found.genes.species, found.genes.repeated) == (
        "Ensembl gene ids", "human", 1,
    )  # fmt: skip
    assert found.genes.columns == {"feature_name": "symbols"}
    assert "gene_key" not in found.settings
    assert "--gene-key feature_name trains on symbols" in str(found)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("cell_type", "annotation"), ("CellType", "leiden"), ("cell_type", "cell_type_coarse"),
        ("cell_type", "cell_type_ontology_term_id"), ("annotation", "louvain"),
        ("Celltypes", "clusters"),
    ],
)  # fmt: skip
def test_label_rank__the_likelier_is_less(better, worse):
    assert label_rank(better) < label_rank(worse)


def test_ranks__of_names_that_are_neither():
    assert is_named_label("author_cell_type")
    assert not is_named_label("leiden")
    assert not is_named_label("percent.mt")
    assert group_rank("donor_id") < group_rank("sample") < group_rank("batch") < group_rank("assay")
    assert group_rank("n_genes") == group_rank("sex")


def test_inspect_data__columns(tmp_path):
    adata = counted(make())
    obs = adata.obs
    donor = obs.donor.astype(str)
    obs["sample"] = pd.Categorical(donor + np.where(obs.n % 2, "a", "b"))
    obs["library"] = obs["sample"].cat.rename_categories(str.upper)
    obs["risk"] = pd.Categorical(np.where(donor == "D1", "high", "low"))
    obs["fine_type"] = pd.Categorical(obs.cell_type.astype(str) + np.where(obs.n % 2, "1", "2"))
    obs["sex"] = pd.Categorical(np.where(obs.n % 2, "f", None))
    obs["barcode"] = [f"b{i}" for i in range(600)]
    obs["kept"] = obs.n > 3
    obs["leiden"] = obs.n % 7
    columns = {c.name: c for c in inspect(write(adata, tmp_path)).columns}
    found = {name: (c.role, c.n_values, c.missing, c.relation) for name, c in columns.items()}
    assert found == {
        "cell_type": ("labels", 5, 0, ""),
        "fine_type": ("labels", 10, 0, "finer than cell_type"),
        "leiden": ("labels", 7, 0, ""),
        "donor": ("groups", 4, 0, ""),
        "sample": ("groups", 8, 0, "within donor"),
        "library": ("groups", 8, 0, "the same as sample"),
        "risk": ("others", 2, 0, "one for each donor"),
        "sex": ("others", 1, 300, ""),
        "barcode": ("others", None, None, ""),
        "kept": ("others", 2, 0, ""),
        "n": ("others", 600, 0, ""),
    }


def test_inspect_data__classes_that_are_too_rare(tmp_path):
    adata = counted(make())
    names = adata.obs.cell_type.astype(str).to_numpy()
    names[[0, 200, 599]] = "few"
    names[:9] = "unknown"
    names[20:40] = "of one donor"
    adata.obs["cell_type"] = pd.Categorical(names)
    found = inspect(write(adata, tmp_path))
    notes = {c.name: (c.n_cells, c.n_groups, c.note) for c in found.classes if c.note}
    assert notes == {
        "of one donor": (20, 1, "in one, not validated"),
        "unknown": (9, 1, "too rare; in one, not validated; a cell type?"),
        "few": (2, 2, "too rare"),
    }
    assert [c.n_cells for c in found.classes] == sorted(c.n_cells for c in found.classes)[::-1]
    assert "2 classes are too rare, below 10 cells (11 together)" in " ".join(found.notes)
    assert "--where \"cell_type != 'unknown'\" leaves out" in " ".join(found.notes)


def test_inspect_data__without_labels_or_donors(tmp_path):
    adata = counted(make())
    adata.obs = adata.obs[["n"]].assign(a=list("xy") * 300, b=list("xyz") * 200)
    found = inspect(write(adata, tmp_path))
    assert (found.labels, found.groups, found.needs, found.classes) == (None, None, [], [])
    assert "which column has the cell types is not plain" in str(found)
    assert found.command[3:5] == ["--labels", "COLUMN"]
    named = inspect(tmp_path / "atlas.h5ad", "b")
    assert [c.n_cells for c in named.classes] == [200] * 3
    assert "validation_groups" not in named.settings
    assert "no column of donors, samples or batches" in str(named)


def test_inspect_data__several_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, n_vars in enumerate((120, 100)):
        of = make(seed=i)[:, :n_vars].copy()
        counted(of).write_h5ad(f"part {i}.h5ad")
    found = inspect("part *.h5ad")
    assert (found.kind, found.n_obs, found.n_vars) == ("AnnData, several files", 1200, 100)
    assert [file.n_obs for file in found.files] == [600, 600]
    assert sum(c.n_cells for c in found.classes) == 1200
    assert run(found).provenance["n_cells"] == 1200
    make().write_h5ad("part 2.h5ad")  # of which X is log1p
    assert inspect(["part 0.h5ad", "part 2.h5ad"]).matrix == ""


@pytest.mark.parametrize("form", ["h5ad", "sharded"])
def test_inspect_data__on_a_server(tmp_path, form):
    path = write(make(), tmp_path, form)
    local = inspect(path)
    with servers.serving(tmp_path) as server:
        found = inspect(f"{server.url}/{path.name}")
    assert found.command[2] == f"{server.url}/{path.name}"
    assert (found.columns, found.classes, found.genes) == (
        local.columns, local.classes, local.genes,
    )  # fmt: skip
    assert [m.values for m in found.files[0].matrices] == [
        m.values for m in local.files[0].matrices
    ]


def test_inspect_data__text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adata = make()
    counts = pd.DataFrame(adata.layers["counts"].toarray(), adata.obs_names, adata.var_names)
    counts.T.to_csv("table.csv")
    (tmp_path / "labels.txt").write_text("\n".join(adata.obs.cell_type) + "\n")
    found = inspect("table.csv", "labels.txt", transpose_input=True)
    assert (found.kind, found.n_obs, found.n_vars) == ("text", 600, 120)
    assert found.files[0].matrices[0].kind == "counts"
    assert found.settings == {"recipe": "atlas"}
    assert len(run(found).cell_types) == 5
    assert "COLUMN" in inspect("table.csv", transpose_input=True).command


def test_inspect_data__refuses(tmp_path):
    path = write(make(), tmp_path)
    with pytest.raises(InputError, match=r"no obs column 'celltype' .*: did you mean 'cell_type'"):
        inspect(path, "celltype")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="cut short"):
        inspect(path)
    (tmp_path / "notes.docx").write_text("x")
    with pytest.raises(InputError, match="is of no type that can be read"):
        inspect(tmp_path / "notes.docx")
    with pytest.raises(InputError, match="looks at files, and this is a AnnData"):
        inspect(make())


def test_inspect_data__the_page_is_narrow_and_cannot_steer_the_terminal(tmp_path):
    adata = counted(make(n_types=60))
    names = {n: f"\x1b[31m{n} {'long ' * 20}" for n in adata.obs.cell_type.cat.categories}
    adata.obs["cell_type"] = adata.obs.cell_type.cat.rename_categories(names)
    adata.obs["donor" + "\u202e" + "x" * 80] = adata.obs.pop("donor")
    adata.var.index = [f"G\x1b{j}" for j in range(120)]
    text = str(inspect(write(adata, tmp_path)))
    page, _ = text.rsplit("\n\n", 1)
    assert max(map(len, page.splitlines())) <= 100
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"\x1b[31m" in page
    assert "and 20 smaller ones" in page


def test_cli__inspect_data(tmp_path, capsys):
    path = write(make(), tmp_path)
    found = inspect(path, "cell_type")
    assert isinstance(found, DataInspection)
    cli.app(["inspect", str(path), "--labels", "cell_type"], result_action="return_value")
    assert capsys.readouterr().out == f"{found}\n"
    cli.app(["inspect", str(path), "--labels", "cell_type", "--json"], result_action="return_value")
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(asdict(found)))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["inspect", str(path), "--labels", "none"])


@pytest.mark.parametrize(
    ("name", "groups", "rare"),
    [
        ("pancreas_4studies", "donor", 0), ("lung_ts", "donor", 16), ("pbmc3k", None, 0),
        ("pbmc_kang_ifnb", "donor", 0), ("mouse_bm_paul15", "batch", 1),
    ],
)  # fmt: skip
def test_inspect_data__of_real_sets(name, groups, rare):
    path = stores.DATA / f"{name}.h5ad"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    found = inspect(path)
    assert (found.labels, found.groups) == ("cell_type", groups)
    assert found.settings["normalize"] == "log1p"
    assert found.genes.kind == "symbols"
    assert len([c for c in found.classes if c.n_cells < 10]) == rare
