"""The YAML of the CXI writer: its keys, their rules, and whether they agree with the pipeline's."""

from __future__ import annotations

import difflib
import hashlib
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from nightbeam.core.errors import ConfigError, MissingError
from nightbeam.cxi import layout
from nightbeam.cxi.masks import mask_place
from nightbeam.cxi.model import OutputPlan
from nightbeam.peaks.model import PeakSettings
from nightbeam.stream.model import MessageDefaults, PadStyle

__all__ = [
    "OVERRIDES",
    "DetectorConfig",
    "GeometryConfig",
    "HealthConfig",
    "InstrumentConfig",
    "MetadataConfig",
    "OutputConfig",
    "PeakFindingConfig",
    "PreprocessingConfig",
    "ProcessingConfig",
    "QueueConfig",
    "RayConfig",
    "RunConfig",
    "SystemConfig",
    "WriterConfig",
    "check_files",
    "consistency_warnings",
    "known_keys",
    "load_config",
    "merge_config_with_overrides",
    "message_defaults",
    "output_plan",
    "peak_settings",
    "read_yaml",
    "validate_consistency",
    "writer_config",
]

_MOST_BYTES = 1 << 20
_MOST_ALIASES = 20
_DEEPEST = 20

#: Options of ``cxi-writer`` -> the keys that they stand for.
OVERRIDES: Final[Mapping[str, str]] = {
    "output_dir": "output.output_dir",
    "file_prefix": "output.file_prefix",
    "geom_file": "geometry.geom_file",
    "num_cpu_workers": "processing.num_cpu_workers",
    "max_pending_tasks": "processing.max_pending_tasks",
    "batches_per_file": "output.batches_per_file",
    "save_segmentation_maps": "output.save_segmentation_maps",
    "log_level": "system.log_level",
    "mode": "processing.mode",
    "health_port": "health.port",
}
#: What the pipeline takes where its file is silent.
_PIPELINE: Final[Mapping[str, Any]] = {
    "ray.namespace": "peaknet-pipeline",
    "runtime.queue_names.output_queue": "peaknet_q2",
    "runtime.queue_num_shards": 4,
    "runtime.queue_maxsize_per_shard": 100,
    "runtime.enable_output_queue": False,
}
#: Line of the check -> (key of the pipeline, key of the writer).
_SAME: Final[Mapping[str, tuple[str, str]]] = {
    "Ray namespace": ("ray.namespace", "ray.namespace"),
    "Q2 queue name": ("runtime.queue_names.output_queue", "queue.name"),
    "Q2 num shards": ("runtime.queue_num_shards", "queue.num_shards"),
}


# -- words and numbers --------------------------------------------------------------------------------------------


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not true or false")
    return value


def _plain_name(value: str) -> str:
    if not value or not value.isprintable() or value.startswith(".") or set(value) & set("/\\{}"):
        raise ValueError("a plain name is wanted: no path separators, no braces, no dot in front")
    return value


def _template(value: str) -> str:
    known = {"prefix", "experiment", "run", "chunk", "time", "writer"}
    used = {name for _, name, _, _ in string.Formatter().parse(value) if name is not None}
    if unknown := sorted(used - known):
        raise ValueError(f"{{{unknown[0]}}} means nothing here; there are {', '.join(sorted(known))}")
    if "chunk" not in used or set(value) & set("/\\") or value.startswith("."):
        raise ValueError("{chunk} is wanted in it, path separators and a dot in front are not")
    return value


def _a_path(value: Any) -> Any:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a path is wanted")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _count_or_auto(value: Any) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        number = int(_no_truth_value(value))
    except (TypeError, ValueError, OverflowError):
        number = 0
    if not 1 <= number <= 100_000 or number != (float(value) if isinstance(value, str) else value):
        raise ValueError("a whole number from 1 on, or auto, is wanted")
    return number


def _static(value: Any) -> Any:
    if not isinstance(value, str | int | float):
        raise ValueError("a word, a number, or true or false is wanted")
    # What HDF5 cannot keep is refused here, before anything is taken from the queue.
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("a whole number of 64 bits at most is wanted")
    if isinstance(value, str) and ("\0" in value or not _is_utf8(value)):
        raise ValueError("a text without NUL and without halves of characters is wanted")
    return value


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= one <= "\udfff" for one in text)


Count = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=1, le=2**62)]
Natural = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=0, le=2**62)]
CountOrAuto = Annotated[int | Literal["auto"], PlainValidator(_count_or_auto)]
Static = Annotated[str | int | float | bool, PlainValidator(_static)]
Seconds = Annotated[float, BeforeValidator(_no_truth_value), Field(gt=0, le=1e9, allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(_no_truth_value), Field(gt=0, allow_inf_nan=False)]
Number = Annotated[float, BeforeValidator(_no_truth_value), Field(allow_inf_nan=False)]
Word = Annotated[str, Field(min_length=1, max_length=200)]
PlainName = Annotated[str, Field(max_length=150), AfterValidator(_plain_name)]
PathLike = Annotated[Path, BeforeValidator(_a_path)]


def _copied_names(value: tuple[str, ...]) -> tuple[str, ...]:
    layout.check_names(value, below=layout.COPIED, what="metadata key")
    return value


def _static_names(value: dict[str, Any]) -> dict[str, Any]:
    layout.check_names(value, below=layout.STATIC, what="name")
    return value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def __getitem__(self, key: str) -> Any:
        """Return what the file has under a key, as of a dict."""
        for name, field in type(self).model_fields.items():
            if key == (field.alias or name):
                return getattr(self, name)
        raise KeyError(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return what the file has under a key, as of a dict."""
        try:
            return self[key]
        except KeyError:
            return default


# -- sections -----------------------------------------------------------------------------------------------------


class RayConfig(_Section):
    """Where the queue lives."""

    namespace: Word = Field(description="Must equal the pipeline's.")
    address: Word = Field("auto", description="auto: a cluster that runs; local: one in this process; host:port.")


class QueueConfig(_Section):
    """The queue that the network's output comes from."""

    name: Word = Field(description="The pipeline's runtime.queue_names.output_queue.")
    num_shards: CountOrAuto = Field(description="The pipeline's runtime.queue_num_shards, or auto.")
    maxsize_per_shard: Count = Field(1600, description="Batches; used only when the queue is created.")
    poll_timeout: Seconds = Field(0.01, description="How long one look into an empty queue waits, s.")
    num_producers: Count = Field(1, description="How many end markers end the run.")


class ProcessingConfig(_Section):
    """Who finds the peaks, and how much is in hand at a time."""

    num_cpu_workers: CountOrAuto = Field(16, description="Mini-batches of a batch; auto follows load.")
    max_pending_tasks: Count = Field(100, description="While so many are open no batch is taken.")
    max_pending_bytes: Count | None = Field(None, description="Likewise; null: 25 % of the object store.")
    mode: Literal["auto", "threads", "tasks"] = Field("auto", description="tasks: Ray spreads them over nodes.")


class PeakFindingConfig(_Section):
    """What a peak is, and which events are hits."""

    min_num_peak: Natural = Field(10, description="Events with fewer are not written.")
    max_num_peak: Count = Field(2048, description="Peaks kept of an event, the strongest; width of the arrays.")
    connectivity: Literal[4, 8] = Field(8, description="8: pixels that touch at a corner are one peak.")
    min_probability: float = Field(0.5, gt=0, lt=1, description="Of class 1, for a pixel to be of a peak.")
    centroid: Literal["mass", "intensity"] = Field("mass", description="Mean index, or weighted.")
    background: Literal["ring", "ring-mean", "none"] = Field("ring", description="What is taken from intensities.")
    min_pixels: Count = Field(1, description="Smaller components are no peaks.")
    max_pixels: Count | None = Field(None, description="Larger ones neither.")
    reject_above: bool = Field(False, description="Drop events with more than max_num_peak.")

    @model_validator(mode="after")
    def _ordered(self) -> PeakFindingConfig:
        if self.max_num_peak < self.min_num_peak:
            raise ValueError(f"max_num_peak is {self.max_num_peak}, min_num_peak {self.min_num_peak}")
        if self.max_pixels is not None and self.max_pixels < self.min_pixels:
            raise ValueError(f"max_pixels is {self.max_pixels}, min_pixels {self.min_pixels}")
        return self


class PreprocessingConfig(_Section):
    """What was done to the images before the network saw them."""

    pad_style: PadStyle = Field("bottom-right", description="A message's own word wins.")


class DetectorConfig(_Section):
    """For messages that do not say it."""

    num_panels: Count | None = Field(None, description="Panels of an event.")
    panel_shape: tuple[Count, Count] | None = Field(None, description="Rows and columns of the detector's panel.")


class GeometryConfig(_Section):
    """Where panels go in the slab."""

    geom_file: PathLike | None = Field(None, description="CrystFEL geometry; null: panels are stacked.")
    panel_map: tuple[tuple[Natural, Natural], ...] | None = Field(None, description="Origins [[ss0, fs0], ...].")
    mask_file: PathLike | None = Field(None, description="Bad pixels, not 0: FILE.npy or FILE.h5:/DATASET.")


class InstrumentConfig(_Section):
    """Used where the metadata have none."""

    camera_length_mm: Number | None = Field(None, description="Encoder value.")
    photon_energy_eV: Positive | None = Field(None, description="Photon energy.")  # noqa: N815  (the file's key)
    pixel_size_m: Positive | None = Field(None, description="Pixel size.")


class MetadataConfig(_Section):
    """What else is kept."""

    copy_: Annotated[tuple[Word, ...], AfterValidator(_copied_names)] = Field(
        (), alias="copy", description="Metadata keys to store for each event."
    )
    static: Annotated[dict[Word, Static], AfterValidator(_static_names)] = Field(
        default_factory=dict, description="Stored once per file."
    )


class RunConfig(_Section):
    """When the run ends by itself."""

    total_events: Count | None = Field(None, description="After so many events were received.")
    total_batches: Count | None = Field(None, description="After so many batches.")
    idle_timeout: Seconds | None = Field(None, description="Without a message, after the first one, s.")
    startup_timeout: Seconds | None = Field(None, description="Without a first message, s.")


class OutputConfig(_Section):
    """The files."""

    output_dir: PathLike = Field(description="Where they go.")
    file_prefix: PlainName = Field("peaknet_cxi", description="How their names begin.")
    buffer_size: Count = Field(100, description="Events of a file.")
    batches_per_file: Count | None = Field(None, description="A file ends after so many batches.")
    create_output_dir: bool = Field(True, description="false: a missing directory is an error.")
    save_segmentation_maps: bool = Field(False, description="Also the masks.")
    images: bool = Field(True, description="false: peak lists only.")
    dtype: Literal["float32", "uint16", "int16", "int32", "float16"] = Field("float32", description="Of the images.")
    compression: Literal[
        "none", "gzip-1", "gzip-2", "gzip-3", "gzip-4", "gzip-5", "gzip-6", "gzip-7", "gzip-8", "gzip-9",
        "bslz4", "bszstd", "zstd",
    ] = Field("none", description="Of the images; all but gzip want a plugin to be read.")  # fmt: skip
    flush_interval: Seconds | None = Field(None, description="A file ends after so many seconds.")
    ordered: bool = Field(True, description="Events in the order of their producer, else as they are done.")
    per_run: bool = Field(False, description="A directory for each run.")
    name_template: Annotated[str, Field(max_length=200), AfterValidator(_template)] = Field(
        "{prefix}_{time}_{writer}_chunk{chunk}", description="Of names, without .cxi."
    )
    lst: bool = Field(True, description="{prefix}.lst, the list of files for indexamajig.")
    geom: bool = Field(True, description="{prefix}.geom, the geometry of the files.")
    master: bool = Field(True, description="A virtual file of all events of a run.")
    compat: tuple[Literal["cheetah", "psocake"], ...] = Field(("cheetah",), description="Extra datasets.")


class SystemConfig(_Section):
    """Log."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="What is said.")
    log_file: PathLike | None = Field(None, description="Also there.")
    progress_interval: Count = Field(50, description="Batches between two lines of progress.")


class HealthConfig(_Section):
    """Health and metrics over HTTP, on the loopback interface."""

    port: Annotated[int, BeforeValidator(_no_truth_value), Field(ge=0, le=65535)] | None = Field(
        None, description="null: none; 0: a free one."
    )


class WriterConfig(_Section):
    """All that the writer is told.

    Attributes
    ----------
    sha256
        Of the file that it was read from, ``""`` where there was none.
    """

    ray: RayConfig
    queue: QueueConfig
    output: OutputConfig
    processing: ProcessingConfig = ProcessingConfig()
    peak_finding: PeakFindingConfig = PeakFindingConfig()
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    detector: DetectorConfig = DetectorConfig()
    geometry: GeometryConfig = GeometryConfig()
    instrument: InstrumentConfig = InstrumentConfig()
    metadata: MetadataConfig = MetadataConfig()
    run: RunConfig = RunConfig()
    system: SystemConfig = SystemConfig()
    health: HealthConfig = HealthConfig()

    _sha256: str = PrivateAttr("")

    @property
    def sha256(self) -> str:
        """Return the checksum of the file."""
        return self._sha256


# -- reading ------------------------------------------------------------------------------------------------------


def load_config(path: str | Path) -> WriterConfig:
    """Read the writer's YAML.

    Parameters
    ----------
    path
        The file. Paths in it are taken from the current directory.

    Returns
    -------
    WriterConfig
        With ``sha256`` of the file.

    Raises
    ------
    ConfigError
        If there is no such file, it is no YAML, or does not follow the rules; all faults are listed at once.
    """
    path = Path(path)
    data = _read_bytes(path)
    return _with_sha256(writer_config(_parsed(data, path), source=str(path)), hashlib.sha256(data).hexdigest())


def merge_config_with_overrides(config: WriterConfig | Mapping[str, Any], overrides: Mapping[str, Any]) -> WriterConfig:
    """Return the configuration with what the command line says instead.

    Parameters
    ----------
    config
        As read, or the tree of a file.
    overrides
        Option (``output_dir``), dotted key (``output.output_dir``) or section (``output``: mapping) to value; None
        where nothing was given.

    Raises
    ------
    ConfigError
        If a name or a value is wrong.
    """
    tree = config.model_dump(by_alias=True) if isinstance(config, WriterConfig) else _copied(config)
    for name, value in overrides.items():
        _override(tree, OVERRIDES.get(name, name), value)
    merged = writer_config(tree, source="the configuration with its overrides")
    return _with_sha256(merged, config.sha256) if isinstance(config, WriterConfig) else merged


def writer_config(tree: Any, *, source: str = "the configuration") -> WriterConfig:
    """Return the configuration of a tree of sections; null means default.

    Raises
    ------
    ConfigError
        Listing everything that is missing, unknown or wrong.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{source} holds {_kind(tree)}, not sections", fix="write `section:` and `  key: value`")
    try:
        return WriterConfig.model_validate(_without_nulls(tree))
    except ValidationError as error:
        raise _complaint(error, source) from None


def known_keys() -> tuple[str, ...]:
    """Return every key, dotted, in the order of the sections."""
    return tuple(f"{section}.{key}" for section, model in _sections() for key in _keys(model))


def read_yaml(path: Path) -> Any:
    """Return the tree of a YAML file that anybody may have written.

    Raises
    ------
    ConfigError
        If it cannot be read, is too large, too deep, has more aliases than a person writes, or is no YAML.
    """
    return _parsed(_read_bytes(path), path)


def check_files(config: WriterConfig) -> None:
    """Refuse a geometry, a mask or an output directory that is not there, before anything is taken.

    Raises
    ------
    MissingError
        Naming the file and the key.
    """
    geometry, output = config.geometry.geom_file, config.output
    if geometry is not None and not geometry.is_file():
        raise MissingError(f"no geometry file {geometry}", fix="verify that `geometry.geom_file` is correct")
    if config.geometry.mask_file is not None:
        mask, _ = mask_place(config.geometry.mask_file)
        if not mask.is_file():
            raise MissingError(f"no mask file {mask}", fix="verify that `geometry.mask_file` is correct")
    if not output.create_output_dir and not output.output_dir.is_dir():
        raise MissingError(
            f"no output directory {output.output_dir}", fix="create it, or set `output.create_output_dir: true`"
        )


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration file {path}", fix="create it or correct its name") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', error)}", fix="check the file") from error
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{path} has more than {_MOST_BYTES} bytes", fix="is it a configuration?")
    return data


def _parsed(data: bytes, path: Path) -> Any:
    try:
        text = data.decode()
        _require_harmless(text, path)
        tree = yaml.safe_load(text)
        return {} if tree is None else tree  # all that is missing is then listed
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        said = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path} is not YAML: {said}", fix="correct the file") from error


def _require_harmless(text: str, path: Path) -> None:
    """Refuse what would grow without bound when it is made into objects, by looking at its events alone."""
    aliases, open_nodes = 0, []
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            open_nodes.pop()
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if event.anchor in open_nodes:
                raise ConfigError(f"{path}: *{event.anchor} is a part of itself", fix="write the value out")
        if aliases > _MOST_ALIASES or len(open_nodes) > _DEEPEST:
            raise ConfigError(
                f"{path} has more than {_MOST_ALIASES} aliases or {_DEEPEST} levels", fix="write the values out"
            )


def _with_sha256(config: WriterConfig, digest: str) -> WriterConfig:
    config._sha256 = digest
    return config


def _without_nulls(tree: Mapping[Any, Any]) -> dict[Any, Any]:
    return {
        key: _without_nulls(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if value is not None
    }


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _override(tree: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(value, Mapping) and "." not in name:
        for key, inner in value.items():
            _override(tree, f"{name}.{key}", inner)
        return
    section, _, key = name.partition(".")
    if not key:
        raise ConfigError(f"{name!r} names no option and no key", fix=_near(name, [*OVERRIDES, *known_keys()]))
    if value is None:
        return
    below = tree.get(section)
    tree[section] = {**(below if isinstance(below, Mapping) else {}), key: value}


# -- what is wrong ------------------------------------------------------------------------------------------------


def _complaint(error: ValidationError, source: str) -> ConfigError:
    missing, wrong = [], []
    for item in error.errors():
        where = [str(part) for part in item["loc"]]
        if item["type"] == "missing" and _is_ours(where):
            missing += _required(where)
        elif item["type"] == "missing":
            wrong.append(f"{_at_place(item['loc'])}: there is nothing, and something is wanted")
        elif item["type"] == "extra_forbidden":
            wrong.append(_unknown(where))
        else:
            wrong.append(_said(_at_place(item["loc"]), item))
    lines = [f"missing: {', '.join(missing)}"] if missing else []
    return ConfigError(
        f"{source}: " + "; ".join([*lines, *dict.fromkeys(wrong)]),
        fix="add what is missing" if missing and not wrong else "correct the file",
    )


def _is_ours(where: list[str]) -> bool:
    return ".".join(where) in {*known_keys(), *dict(_sections())}


def _at_place(loc: tuple[str | int, ...]) -> str:
    """Return a place as one writes it: ``geometry.panel_map[1][1]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def _required(where: list[str]) -> list[str]:
    """Return the required keys of what is missing: a whole section, or one key."""
    if len(where) > 1:
        return [".".join(where)]
    model = dict(_sections())[where[0]]
    return [f"{where[0]}.{name}" for name, field in model.model_fields.items() if field.is_required()]


def _unknown(where: list[str]) -> str:
    dotted = ".".join(where)
    return f"unknown key {dotted!r} ({_near(dotted, [*known_keys(), *dict(_sections())])})"


def _said(where: str, item: Any) -> str:
    found = repr(item["input"])
    text = item["msg"].removeprefix("Value error, ")
    return f"{where}: {text}, found {found if len(found) < 80 else found[:77] + '...'}"


def _near(name: str, known: list[str]) -> str:
    near = [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]][:1]  # in the wrong section
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "remove it"


def _sections() -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in WriterConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield name, field.annotation


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


# -- for others ---------------------------------------------------------------------------------------------------


def peak_settings(config: WriterConfig) -> PeakSettings:
    """Return what the peak finder is asked for."""
    asked = config.peak_finding.model_dump(exclude={"min_num_peak", "max_num_peak", "reject_above"})
    return PeakSettings(**asked)


def message_defaults(config: WriterConfig) -> MessageDefaults:
    """Return what is taken for granted where a message is silent."""
    return MessageDefaults(
        num_panels=config.detector.num_panels or len(config.geometry.panel_map or ()) or None,
        panel_shape=config.detector.panel_shape,
        pad_style=config.preprocessing.pad_style,
        photon_energy_ev=config.instrument.photon_energy_eV,
        clen_mm=config.instrument.camera_length_mm,
        copy=config.metadata.copy_,
        images=config.output.images,
    )


def output_plan(config: WriterConfig) -> OutputPlan:
    """Return how files are named, cut and laid out."""
    same = OutputPlan.__dataclass_fields__.keys() & OutputConfig.model_fields.keys()
    return OutputPlan(
        **{name: getattr(config.output, name) for name in same},
        flush_interval_s=config.output.flush_interval,
        min_num_peak=config.peak_finding.min_num_peak,
        max_num_peak=config.peak_finding.max_num_peak,
        pixel_size_m=config.instrument.pixel_size_m,
        static=config.metadata.static,
        config_sha256=config.sha256,
    )


# -- agreement with the pipeline ----------------------------------------------------------------------------------


def validate_consistency(
    pipeline_config: Mapping[str, Any], writer_config: WriterConfig | Mapping[str, Any]
) -> list[str]:
    """Check that the pipeline puts where the writer takes.

    Parameters
    ----------
    pipeline_config
        The tree of the pipeline's YAML; what it does not say is taken as the pipeline takes it.
    writer_config
        Ours, or its tree.

    Returns
    -------
    list of str
        A line with a tick for each thing that agrees, and a last one.

    Raises
    ------
    ConfigError
        A ValueError that lists every mismatch.
    """
    pipeline = _of_pipeline(pipeline_config)
    writer = _tree_of(writer_config)
    lines, wrong = [], []
    for what, (theirs, ours) in _SAME.items():
        left, right = pipeline[theirs], _at(writer, ours)
        if left == right:
            lines.append(f"✓ {what} matches: {left}")
        elif right == "auto" and ours == "queue.num_shards":
            lines.append(f"✓ {what} is found when the writer starts: {left} in the pipeline")
        else:
            wrong.append(f"{what} differs: {theirs} of the pipeline is {left!r}, {ours} of the writer is {right!r}")
    if pipeline["runtime.enable_output_queue"] is not True:
        wrong.append("runtime.enable_output_queue of the pipeline is not true: it puts nothing on Q2")
    if wrong:
        raise ConfigError("\n".join(wrong), fix="give both files the same values")
    return [*lines, "✓ Configuration validation passed"]


def consistency_warnings(
    pipeline_config: Mapping[str, Any], writer_config: WriterConfig | Mapping[str, Any]
) -> list[str]:
    """Return what differs between the two and only matters to who creates the queue."""
    theirs = _of_pipeline(pipeline_config)["runtime.queue_maxsize_per_shard"]
    ours = _at(_tree_of(writer_config), "queue.maxsize_per_shard")
    ours = QueueConfig.model_fields["maxsize_per_shard"].default if ours is None else ours
    if theirs == ours:
        return []
    return [f"queue_maxsize_per_shard is {theirs} in the pipeline, {ours} here; who creates the queue decides"]


def _of_pipeline(tree: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"the pipeline's configuration holds {_kind(tree)}, not sections", fix="check the file")
    found = {key: _at(tree, key) for key in _PIPELINE}
    return {key: _PIPELINE[key] if value is None else value for key, value in found.items()}


def _tree_of(config: WriterConfig | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(config, WriterConfig):
        return config.model_dump(by_alias=True)
    if not isinstance(config, Mapping):
        raise ConfigError(f"the writer's configuration holds {_kind(config)}, not sections", fix="check the file")
    return config


def _at(tree: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
