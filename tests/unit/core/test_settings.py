from pathlib import Path

import pytest
import yaml

from nightbeam.core.errors import ConfigError
from nightbeam.core.settings import SEED_VARIABLES, Settings, database_url, known_keys, load_settings


def load(tmp_path, text=None, environ=None, **overrides):
    config = None
    if text is not None:
        config = tmp_path / "site.yaml"
        config.write_text(text)
    return load_settings(config=config, environ=environ or {}, overrides=overrides)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path):
    text = "contimg: {image: {niter: 1, imsize: 256, robust: 0.5}}"
    environ = {"NIGHTBEAM_CONTIMG__IMAGE__NITER": "2", "NIGHTBEAM_CONTIMG__IMAGE__IMSIZE": "512"}
    image = load(tmp_path, text, environ, **{"contimg.image.niter": 3}).contimg.image
    assert (image.niter, image.imsize, image.robust) == (3, 512, 0.5)


def test_a_variable_of_the_old_pipeline_is_honoured_below_our_own(tmp_path):
    old = {"IMG_NITER": "7", "PIPELINE_QUEUE_DB": "/data/q.sqlite3"}
    assert load(tmp_path, environ=old).contimg.image.niter == 7
    assert load(tmp_path, environ=old).contimg.queue_db == "/data/q.sqlite3"
    assert load(tmp_path, environ=old | {"NIGHTBEAM_CONTIMG__IMAGE__NITER": "8"}).contimg.image.niter == 8


def test_of_two_old_names_for_one_thing_the_first_listed_wins(tmp_path):
    both = {"PIPELINE_STATE_DIR": "/first", "CONTIMG_STATE_DIR": "/second"}
    assert load(tmp_path, environ=both).state_dir == Path("/first")


def test_every_old_variable_names_a_setting_that_exists():
    assert set(SEED_VARIABLES.values()) <= set(known_keys())


def test_a_misspelt_key_is_refused_with_the_right_one(tmp_path):
    with pytest.raises(ConfigError, match=r"contimg\.image\.nitre.*did you mean contimg\.image\.niter"):
        load(tmp_path, "contimg: {image: {nitre: 3}}")


def test_a_misspelt_variable_is_refused_with_the_right_one(tmp_path):
    with pytest.raises(ConfigError, match="NIGHTBEAM_CONTIMG__IMAGE__NITER"):
        load(tmp_path, environ={"NIGHTBEAM_CONTIMG__IMAGE__NITRE": "3"})


@pytest.mark.parametrize("text", ["- a\n- b", "a: [", "\x00"])
def test_a_file_that_holds_no_settings_is_refused_by_name(tmp_path, text):
    with pytest.raises(ConfigError, match=r"site\.yaml"):
        load(tmp_path, text)


def test_a_value_of_the_wrong_kind_is_quoted(tmp_path):
    with pytest.raises(ConfigError, match=r"contimg\.image\.imsize.*'wide'"):
        load(tmp_path, environ={"IMG_IMSIZE": "wide"})


@pytest.mark.parametrize(
    ("variable", "value"),
    [("CONTIMG_LOG_LEVEL", "LOUD"), ("IMG_THRESHOLD", "3 bananas"), ("PIPELINE_POINTING_DEC_DEG", "330")],
)
def test_a_value_that_would_only_fail_in_the_night_is_refused_at_once(tmp_path, variable, value):
    with pytest.raises(ConfigError, match=value):
        load(tmp_path, environ={variable: value})


def test_threads_are_those_of_openmp_at_its_outermost_level(tmp_path):
    assert load(tmp_path, environ={"OMP_NUM_THREADS": "4,2", "MKL_NUM_THREADS": "3"}).contimg.threads == 4
    assert load(tmp_path, environ={"OMP_NUM_THREADS": "4", "NIGHTBEAM_CONTIMG__THREADS": "1"}).contimg.threads == 1


def test_a_named_file_must_exist_and_an_unnamed_one_need_not(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file"):
        load_settings(config=tmp_path / "none.yaml", environ={})
    assert load_settings(environ={}) == Settings()


def test_what_is_left_open_lies_under_the_state_directory(tmp_path):
    resolved = load(tmp_path, **{"state_dir": tmp_path / "s"}).resolved()
    assert resolved.contimg.input_dir == tmp_path / "s" / "incoming"
    assert resolved.contimg.queue_db == f"sqlite:///{tmp_path}/s/ingest.sqlite3"


def test_settings_read_as_they_are_written(tmp_path):
    resolved = load(tmp_path, **{"state_dir": tmp_path}).resolved()
    assert load(tmp_path, resolved.to_yaml()).resolved() == resolved
    assert yaml.safe_load(resolved.to_yaml())["state_dir"] == str(tmp_path)


def test_a_database_is_a_path_or_an_address():
    assert database_url("postgresql://h/d", Path("x")) == "postgresql://h/d"
    assert database_url("/a/b.sqlite3", Path("x")) == "sqlite:////a/b.sqlite3"


@pytest.mark.parametrize(
    ("database", "directory"),
    [
        ("/data/mine/elog.db", "/data/mine"),
        ("sqlite:////data/mine/elog.db", "/data/mine"),
        ("postgresql://me@host/elog", "/state/elog"),
        ("sqlite:///:memory:", "/state/elog"),
        (None, "/state/elog"),
    ],
)
def test_snapshots_of_the_logbook_lie_beside_its_mirror(tmp_path, database, directory):
    named = {} if database is None else {"elog.database": database}
    assert load(tmp_path, state_dir="/state", **named).resolved().elog.database_dir == Path(directory)
    told = load(tmp_path, state_dir="/state", **named, **{"elog.database_dir": "/else"}).resolved().elog
    assert told.database_dir == Path("/else")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FETCH_ELOG_HOURS_LOKBACK", "FETCH_ELOG_HOURS_LOOKBACK"),
        ("FETCH_ELOG_DATABASEDIR", "FETCH_ELOG_DATABASE_DIR"),
        ("FETCH_ELOG_EXCLUDE_PATTERNS", "NIGHTBEAM_ELOG__EXCLUDE_PATTERNS"),
        ("FETCH_ELOG_XYZ", "unset it"),
    ],
)
def test_a_misspelt_variable_of_elogfetch_is_refused_with_the_right_one(tmp_path, name, meant):
    with pytest.raises(ConfigError, match=name) as error:
        load(tmp_path, environ={name: "5"})
    assert meant in error.value.fix


def test_the_older_schedulers_variables_are_honoured(tmp_path):
    old = {
        "SCHED_MOSAIC_ENABLE": "0",
        "SCHED_MOSAIC_OUTPUT_DIR": "/data/ms/mosaics",
        "SCHED_MOSAIC_NAME_PREFIX": "strip",
        "SCHED_MOSAIC_WINDOW_DAYS": "2",
        "SCHED_TEMP_AGE": "3600",
    }
    contimg = load(tmp_path, environ=old).contimg
    assert contimg.nightly_mosaics is False
    assert (contimg.mosaic.output_dir, contimg.mosaic.name_prefix) == (Path("/data/ms/mosaics"), "strip")
    assert (contimg.mosaic.window_days, contimg.housekeeping.scratch_age_s) == (2, 3600.0)
