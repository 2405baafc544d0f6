"""Where the original files of each data set lie: addresses, sizes, hashes, licences. A table, no code that fetches.

Source: docs/reference/datasets.md, ANI-1x to MatBench; the MatBench hash from matminer's metadata.
"""

import dataclasses

_FAIR = "https://dl.fbaipublicfiles.com/opencatalystproject/data"
_ASK = "see the data set's page"


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """One file to fetch.

    Attributes:
      name: name on disk.
      urls: addresses, tried in order.
      size: bytes, rounded where only a rounded number is published; for the check of free space.
      hash: "sha256:..." or "md5:..." where a trusted one is published, else "": recorded on first use.
      unpack: archives are unpacked beside themselves, then those named here inside them.
      growth: unpacked bytes per byte.
    """

    name: str
    urls: tuple[str, ...]
    size: int
    hash: str = ""
    unpack: tuple[str, ...] = ()
    growth: float = 1.0


@dataclasses.dataclass(frozen=True)
class Remote:
    """The files of a data set by part ("" is what the paper uses), with licence and DOI."""

    parts: dict[str, RemoteFile]
    licence: str = _ASK
    doi: str = ""


def md22(molecule: str) -> Remote:
    name = f"md22_{molecule}.npz"
    urls = (
        f"http://www.quantum-machine.org/gdml/repo/datasets/{name}",
        f"https://www.sgdml.org/secure_proxy.php?file=repo/datasets/{name}",
    )
    return Remote({"": RemoteFile(name, urls, 500_000_000)}, doi="10.1126/sciadv.adf0873")


def spice(subset: str) -> Remote:
    name = f"{subset}.h5"
    size = {"solvated_amino_acids": 100_000_000}.get(subset, 1_000_000_000)
    file = RemoteFile(name, (f"https://fm-datasets.s3.amazonaws.com/{name}",), size)
    return Remote({"": file}, doi="10.1038/s41597-022-01882-6")


def matbench(variant: str) -> Remote:
    task = variant.partition("/")[0]
    name = f"matbench_{task}.json.gz"
    known = {"phonons": "sha256:4db551f21ec5f577e6202725f10e34dfc509aa7df3a6bdaac497da7f6dbbb9b3"}
    file = RemoteFile(
        name, (f"https://ml.materialsproject.org/projects/{name}",), 200_000_000, hash=known.get(task, "")
    )
    return Remote({"": file}, licence="MIT (MatBench)", doi="10.1038/s41524-020-00406-3")


def _open_catalyst(name: str, size: float, growth: float, md5: str = "") -> RemoteFile:
    file = name.rpartition("/")[2]
    return RemoteFile(file, (f"{_FAIR}/{name}",), int(size), md5 and f"md5:{md5}", (file,), growth)


ANI1X = Remote(
    {
        "": RemoteFile(
            "ani1x-release.h5", ("https://springernature.figshare.com/ndownloader/files/18112775",), 5_600_000_000
        )
    },
    doi="10.1038/s41597-020-0473-z",
)
TRANSITION1X = Remote(
    {"": RemoteFile("Transition1x.h5", ("https://figshare.com/ndownloader/files/36035789",), 6_700_000_000)},
    doi="10.1038/s41597-022-01870-w",
)
OC20 = Remote(
    {
        "": _open_catalyst("s2ef_train_2M.tar", 3.4e9, 5, "953474cb93f0b08cdc523399f03f7c36"),
        "200K": _open_catalyst("s2ef_train_200K.tar", 344e6, 5, "f8d0909c2623a393148435dede7d3a46"),
        "20M": _open_catalyst("s2ef_train_20M.tar", 34e9, 5),
        "val_id": _open_catalyst("s2ef_val_id.tar", 1.7e9, 5, "f57f7f5c1302637940f2cc858e789410"),
        "mapping": RemoteFile("oc20_data_mapping.pkl", (f"{_FAIR}/oc20_data_mapping.pkl",), 300_000_000),
    },
    licence="CC-BY-4.0",
    doi="10.1021/acscatal.0c04525",
)
OC22 = Remote(
    {
        "": _open_catalyst(
            "oc22/s2ef_total_train_val_test_lmdbs.tar.gz", 20e9, 3.6, "ebea523c6f8d61248a37b4dd660b11e6"
        ),
        "mapping": RemoteFile("oc22_metadata.pkl", (f"{_FAIR}/oc22/oc22_metadata.pkl",), 50_000_000),
    },
    licence="CC-BY-4.0",
    doi="10.1021/acscatal.2c05426",
)
OMAT24 = Remote(
    {
        "": _open_catalyst("omat/241018/omat/train/rattled-300-subsampled.tar.gz", 6.4e9, 2),
        "val": _open_catalyst("omat/241220/omat/val/rattled-300-subsampled.tar.gz", 69e6, 2),
    },
    licence="CC-BY-4.0",
)
RMD17 = Remote(
    {
        "": RemoteFile(
            "rmd17.zip",
            ("https://figshare.com/ndownloader/articles/12672038/versions/3",),
            1_000_000_000,
            unpack=("rmd17.zip", "rmd17.tar.bz2"),
            growth=3,
        )
    },
    doi="10.6084/m9.figshare.12672038.v3",
)
QM9 = Remote(
    {
        "": RemoteFile(
            "qm9_v3.zip",
            ("https://data.pyg.org/datasets/qm9_v3.zip",),
            250_000_000,
            unpack=("qm9_v3.zip",),
            growth=3,
        )
    },
    doi="10.6084/m9.figshare.c.978904.v5",
)
QMOF = Remote(
    {
        "": RemoteFile(
            "qmof.zip",
            ("https://figshare.com/ndownloader/articles/13147324/versions/14",),
            1_500_000_000,
            unpack=("qmof.zip",),
            growth=1,
        )
    },
    licence="CC-BY-4.0",
    doi="10.6084/m9.figshare.13147324.v14",
)
