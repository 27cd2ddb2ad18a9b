import contextlib
import hashlib
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nightbeam.core.errors import ConfigError, MissingError
from nightbeam.cxi import config as c

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = sorted((ROOT / "examples" / "cxi").glob("*.yaml"))
PIPELINE = {
    "ray": {"namespace": "peaknet-pipeline"},
    "runtime": {
        "queue_num_shards": 8,
        "queue_maxsize_per_shard": 1600,
        "queue_names": {"input_queue": "peaknet_q1", "output_queue": "peaknet_q2"},
        "enable_output_queue": True,
    },
}


def least(**sections):
    tree = {
        "ray": {"namespace": "peaknet-pipeline"},
        "queue": {"name": "peaknet_q2", "num_shards": 8},
        "output": {"output_dir": "out"},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    return tree


def said(tree):
    with pytest.raises(ConfigError) as caught:
        c.writer_config(tree)
    return str(caught.value)


def test_the_least_configuration_has_the_defaults_of_the_specification():
    found = c.writer_config(least())
    assert (found.queue.maxsize_per_shard, found.queue.poll_timeout) == (1600, 0.01)
    assert (found.processing.num_cpu_workers, found.processing.max_pending_tasks) == (16, 100)
    assert (found.peak_finding.min_num_peak, found.peak_finding.max_num_peak) == (10, 2048)
    assert found.peak_finding.connectivity == 8
    assert (found.output.file_prefix, found.output.buffer_size) == ("peaknet_cxi", 100)
    assert found.output.batches_per_file is None
    assert found.ray.address == "auto"
    assert found.system.progress_interval == 50


def test_all_that_is_missing_is_listed_at_once():
    text = said({})
    for key in ("ray.namespace", "queue.name", "queue.num_shards", "output.output_dir"):
        assert key in text
    assert "queue.num_shards" in said(least(queue={"num_shards": None}))


def test_an_empty_file_lists_all_that_is_missing(tmp_path):
    path = tmp_path / "w.yaml"
    for text in ("", "# nothing yet\n", "---\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"missing: ray\.namespace, queue\.name, queue\.num_shards, output\."):
            c.load_config(path)


def test_a_short_place_of_a_panel_is_wrong_and_not_a_missing_key():
    text = said(least(geometry={"panel_map": [[0, 0], [8]]}))
    assert "missing:" not in text
    assert "geometry.panel_map[1][1]" in text


@pytest.mark.parametrize("name", ["eventNumber", "photon_energy_eV", "a/b", ".."])
def test_metadata_that_cannot_be_stored_are_refused_before_anything_is_taken(name):
    assert name in said(least(metadata={"copy": ["laser", name]}))
    assert "a/b" in said(least(metadata={"static": {"a/b": 1}}))


def test_a_configuration_is_read_like_the_dict_that_its_file_is(tmp_path):
    path = tmp_path / "w.yaml"
    path.write_text(yaml.safe_dump(least(metadata={"copy": ["laser"]})))
    found = c.load_config(path)
    assert (found["queue"]["name"], found["ray"]["namespace"]) == ("peaknet_q2", "peaknet-pipeline")
    assert found["metadata"]["copy"] == ("laser",)
    assert found["output"].get("file_prefix") == "peaknet_cxi"
    assert found["output"].get("colour", "red") == "red"
    for key in ("colour", "copy_", "sha256"):
        with pytest.raises(KeyError):
            found[key]


def test_plain_dicts_can_be_merged_and_compared():
    merged = c.merge_config_with_overrides(least(), {"output_dir": "x"})
    assert merged["output"]["output_dir"] == Path("x")
    assert len(c.validate_consistency(PIPELINE, least())) == 4


def test_the_panel_map_says_how_many_panels_there_are_and_the_detector_goes_before():
    geometry = {"panel_map": [[0, 0], [8, 0]]}
    assert c.message_defaults(c.writer_config(least(geometry=geometry))).num_panels == 2
    assert c.message_defaults(c.writer_config(least(geometry=geometry, detector={"num_panels": 4}))).num_panels == 4


def test_a_null_means_the_default():
    nothing = {"peak_finding": None, "processing": {"num_cpu_workers": None}, "output": {"file_prefix": None}}
    assert c.writer_config(least(**{"processing": nothing["processing"], "output": nothing["output"]})) == (
        c.writer_config(least())
    )
    assert c.writer_config(least() | {"peak_finding": None}) == c.writer_config(least())


@pytest.mark.parametrize(
    ("tree", "meant"),
    [
        (least(peak_finding={"min_num_peaks": 3}), "peak_finding.min_num_peak"),
        (least(procesing={"num_cpu_workers": 3}), "processing"),
        (least(queue={"numshards": 3}), "queue.num_shards"),
        (least(output={"geom_file": "a.geom"}), "geometry.geom_file"),
        (least() | {"_sha256": "x"}, "remove it"),
    ],
)
def test_an_unknown_key_is_an_error_that_says_what_was_meant(tree, meant):
    assert meant in said(tree)
    assert "unknown key" in said(tree)


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("queue", {"num_shards": 0}, "queue.num_shards"),
        ("queue", {"num_shards": True}, "queue.num_shards"),
        ("queue", {"num_shards": "many"}, "or auto"),
        ("queue", {"num_shards": 2.5}, "queue.num_shards"),
        ("queue", {"poll_timeout": 0}, "queue.poll_timeout"),
        ("queue", {"poll_timeout": float("nan")}, "queue.poll_timeout"),
        ("queue", {"name": 7}, "queue.name"),
        ("processing", {"num_cpu_workers": 0}, "processing.num_cpu_workers"),
        ("processing", {"max_pending_tasks": -1}, "processing.max_pending_tasks"),
        ("processing", {"mode": "magic"}, "processing.mode"),
        ("peak_finding", {"connectivity": 6}, "4 or 8"),
        ("peak_finding", {"min_num_peak": -1}, "peak_finding.min_num_peak"),
        ("peak_finding", {"min_num_peak": 9, "max_num_peak": 8}, "max_num_peak is 8"),
        ("peak_finding", {"max_num_peak": 0, "min_num_peak": 0}, "peak_finding.max_num_peak"),
        ("peak_finding", {"min_probability": 1.0}, "peak_finding.min_probability"),
        ("output", {"file_prefix": "a/b"}, "output.file_prefix"),
        ("output", {"file_prefix": ""}, "output.file_prefix"),
        ("output", {"buffer_size": 0}, "output.buffer_size"),
        ("output", {"compression": "lzf"}, "output.compression"),
        ("output", {"name_template": "{chunk}_{colour}"}, "{colour}"),
        ("output", {"name_template": "{prefix}"}, "{chunk}"),
        ("output", {"output_dir": ["a"]}, "a path"),
        ("output", {"output_dir": "~nobody-of-that-name/x"}, "output.output_dir"),
        ("metadata", {"static": {"a": [1]}}, "metadata.static.a"),
        ("metadata", {"static": {"a": 2**63}}, "metadata.static.a"),
        ("metadata", {"static": {"a": -(2**63) - 1}}, "metadata.static.a"),
        ("metadata", {"static": {"a": "x\0y"}}, "metadata.static.a"),
        ("metadata", {"static": {"a": "x\ud83d"}}, "metadata.static.a"),
        ("metadata", {"copy": "abc"}, "metadata.copy"),
        ("geometry", {"panel_map": [[0, 1, 2]]}, "geometry.panel_map"),
        ("health", {"port": 70000}, "health.port"),
        ("system", {"log_level": "LOUD"}, "system.log_level"),
        ("run", {"idle_timeout": -3}, "run.idle_timeout"),
    ],
)
def test_a_value_against_the_rules_is_named_with_its_key(section, values, words):
    assert words in said(least(**{section: values}))


def test_auto_is_understood_for_workers_and_shards():
    found = c.writer_config(least(queue={"num_shards": "auto"}, processing={"num_cpu_workers": "auto"}))
    assert (found.queue.num_shards, found.processing.num_cpu_workers) == ("auto", "auto")


def test_overrides_win_over_the_file_and_what_was_not_given_changes_nothing():
    before = c.writer_config(least())
    merged = c.merge_config_with_overrides(
        before, {"output_dir": "elsewhere", "num_cpu_workers": "32", "queue.name": "q", "batches_per_file": None}
    )
    assert (str(merged.output.output_dir), merged.processing.num_cpu_workers) == ("elsewhere", 32)
    assert merged.queue.name == "q"
    assert merged.output.batches_per_file is None
    assert c.merge_config_with_overrides(least(), {"output": {"buffer_size": 3}}).output.buffer_size == 3
    assert before == c.writer_config(least())


def test_an_override_of_nothing_is_an_error():
    with pytest.raises(ConfigError, match="did you mean output_dir"):
        c.merge_config_with_overrides(least(), {"outputdir": "x"})
    with pytest.raises(ConfigError, match=r"processing\.num_cpu_workers"):
        c.merge_config_with_overrides(least(), {"num_cpu_workers": 0})


def test_a_file_is_read_with_its_checksum_and_overrides_keep_it(tmp_path):
    path = tmp_path / "w.yaml"
    path.write_text(yaml.safe_dump(least()))
    found = c.load_config(path)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert c.merge_config_with_overrides(found, {"file_prefix": "b"}).sha256 == found.sha256
    assert c.output_plan(found).config_sha256 == found.sha256


def bomb():
    rows = ["a0: &a0 [x, x]"] + [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12)]
    return "\n".join(rows).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\xff\xfe",
        b"ray: [unclosed",
        b"- a\n- b\n",
        b"just words",
        b"",
        b"ray: &a [*a]",
        bomb(),
        b"[" * 5000,
        b"ray: !!python/object/apply:os.system ['true']",
        b"x: " + b"a" * (1 << 20),
        b"a: 2025-99-99",
    ],
)
def test_a_hostile_or_foreign_file_gives_one_clear_error(tmp_path, data):
    path = tmp_path / "w.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        c.load_config(path)
    assert len(str(caught.value)) < 1000


def test_a_file_that_is_not_there_or_a_directory_is_a_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file"):
        c.load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        c.load_config(tmp_path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*c.known_keys(), "ray", "queue", "output", "x"]), inner, max_size=4)
        ),
        max_leaves=10,
    )
)
def test_whatever_the_tree_is_the_answer_is_a_configuration_or_our_error(tree):
    with contextlib.suppress(ConfigError):
        c.writer_config(tree)


def test_the_lines_of_an_agreement_are_those_that_users_know():
    assert c.validate_consistency(PIPELINE, least()) == [
        "✓ Ray namespace matches: peaknet-pipeline",
        "✓ Q2 queue name matches: peaknet_q2",
        "✓ Q2 num shards matches: 8",
        "✓ Configuration validation passed",
    ]
    assert c.validate_consistency(PIPELINE, c.writer_config(least())) == c.validate_consistency(PIPELINE, least())


def test_every_mismatch_is_listed_in_one_value_error():
    writer = least(ray={"namespace": "other"}, queue={"name": "q3", "num_shards": 4})
    with pytest.raises(ValueError) as caught:
        c.validate_consistency(PIPELINE | {"runtime": PIPELINE["runtime"] | {"enable_output_queue": False}}, writer)
    text = str(caught.value)
    for word in ("'other'", "'q3'", "Q2 num shards differs", "enable_output_queue"):
        assert word in text


def test_what_the_pipeline_does_not_say_is_as_the_pipeline_takes_it():
    silent = {"runtime": {"enable_output_queue": True}}
    assert len(c.validate_consistency(silent, least(queue={"num_shards": 4}))) == 4
    with pytest.raises(ConfigError, match="enable_output_queue"):
        c.validate_consistency({}, least(queue={"num_shards": 4}))


def test_shards_that_are_looked_for_agree_with_any_number():
    lines = c.validate_consistency(PIPELINE, least(queue={"num_shards": "auto"}))
    assert "found when the writer starts" in lines[2]


def test_another_capacity_is_a_warning_and_no_error():
    assert c.consistency_warnings(PIPELINE, least()) == []
    assert "1600" in c.consistency_warnings(PIPELINE, least(queue={"maxsize_per_shard": 5}))[0]
    assert "100" in c.consistency_warnings({}, least())[0]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_the_examples_that_are_shipped_can_be_used(path):
    assert c.load_config(path).output.output_dir == Path("cxi_output")


def test_the_default_example_names_every_key_with_its_default():
    tree = yaml.safe_load((ROOT / "examples/cxi/cxi_writer_default.yaml").read_text())
    assert sorted(f"{s}.{k}" for s, section in tree.items() for k in section) == sorted(c.known_keys())
    required = {"queue": {"num_shards": 8, "name": "peaknet_q2"}, "output": {"output_dir": "./cxi_output"}}
    assert c.writer_config(tree) == c.writer_config(least(**required))


def test_files_that_are_not_there_are_named_before_anything_is_taken(tmp_path):
    with pytest.raises(MissingError, match=r"no\.geom") as caught:
        c.check_files(c.writer_config(least(geometry={"geom_file": str(tmp_path / "no.geom")})))
    assert isinstance(caught.value, FileNotFoundError)
    assert "geometry.geom_file" in str(caught.value)
    for mask in ("no.npy", "no.h5:/mask"):
        with pytest.raises(MissingError, match=r"no mask file .*no\."):
            c.check_files(c.writer_config(least(geometry={"mask_file": str(tmp_path / mask)})))
    absent = {"output_dir": str(tmp_path / "no"), "create_output_dir": False}
    with pytest.raises(MissingError, match="create_output_dir"):
        c.check_files(c.writer_config(least(output=absent)))


def test_what_others_are_told_follows_the_file():
    found = c.writer_config(
        least(
            peak_finding={"min_probability": 0.9, "max_pixels": 40, "min_num_peak": 3},
            instrument={"photon_energy_eV": 9500, "camera_length_mm": 120, "pixel_size_m": 1e-4},
            detector={"num_panels": 16, "panel_shape": [352, 384]},
            output={"images": False, "flush_interval": 5, "compat": ["psocake"]},
            metadata={"copy": ["laser"], "static": {"sample": "lysozyme"}},
        )
    )
    assert (c.peak_settings(found).min_probability, c.peak_settings(found).max_pixels) == (0.9, 40)
    defaults = c.message_defaults(found)
    assert (defaults.num_panels, defaults.panel_shape, defaults.images) == (16, (352, 384), False)
    assert (defaults.photon_energy_ev, defaults.clen_mm, defaults.copy) == (9500, 120, ("laser",))
    plan = c.output_plan(found)
    assert (plan.min_num_peak, plan.flush_interval_s, plan.compat) == (3, 5, ("psocake",))
    assert plan.static == {"sample": "lysozyme"}


def test_every_key_is_in_the_reference():
    page = (ROOT / "docs/reference/cxi-writer.md").read_text()
    assert set(re.findall(r"^\| `([a-z_]+\.[a-zA-Z_]+)` \|", page, re.MULTILINE)) == set(c.known_keys())
