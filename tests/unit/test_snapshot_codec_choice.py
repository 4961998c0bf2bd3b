"""Which engine computes, what is said when it is not here, and how ISA-L is found."""

import sys
from importlib import import_module

import pytest

from ftrain_snapshot import codec
from ftrain_snapshot.codec import Codec, choose, codec_for, isal, load, speed
from ftrain_snapshot.errors import CodecUnsupported


@pytest.fixture
def fresh():
    """Engines are looked for again, then and afterwards."""
    load.cache_clear()
    yield
    load.cache_clear()


@pytest.fixture
def isal_engine():
    try:
        return isal.IsalEngine()
    except CodecUnsupported as missing:
        pytest.skip(str(missing))


def test_auto_takes_isal_where_it_is(isal_engine):
    assert choose("auto").name == "isal"


def test_auto_takes_numpy_where_isal_is_not(fresh, monkeypatch):
    monkeypatch.setenv(isal.LIBRARY_VARIABLE, "/nowhere/libisal.so.2")
    assert choose("auto").name == "numpy"
    with pytest.raises(CodecUnsupported, match=r"(?s)/nowhere/libisal.so.2.*pip install 'ftrain\[isal\]'"):
        choose("isal")


def test_auto_takes_numpy_where_isal_is_wrong(fresh, monkeypatch, isal_engine):
    monkeypatch.setattr(isal, "multiply", lambda a, b: a & b)
    assert choose("auto").name == "numpy"
    with pytest.raises(CodecUnsupported, match="computes wrongly"):
        choose("isal")


def test_a_library_that_is_not_isal_is_refused(monkeypatch):
    monkeypatch.setenv(isal.LIBRARY_VARIABLE, "libc.so.6")
    with pytest.raises(CodecUnsupported, match="ec_init_tables"):
        isal.IsalEngine()


def test_zfec_that_is_not_installed_says_how_to_install_it(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "zfec", None)
    with pytest.raises(CodecUnsupported, match=r"pip install 'ftrain\[zfec\]'"):
        choose("zfec")


def test_a_codec_that_nobody_knows_is_refused():
    with pytest.raises(CodecUnsupported, match="auto, isal, numpy, zfec"):
        choose("turbo")


def test_engines_are_made_once():
    assert choose("numpy") is load("numpy")


def test_the_library_of_the_wheel_is_used_without_its_python(isal_engine):
    assert "pyeclib" not in sys.modules
    assert isal_engine.path


def test_longer_buffers_than_a_c_int_are_cut(isal_engine, monkeypatch):
    sources, whole, cut = [bytes(range(256)), bytes(range(255, -1, -1))], bytearray(256), bytearray(256)
    grown = bytearray(sources[0])
    isal_engine.combine([(3, 7)], sources, [memoryview(whole)])
    monkeypatch.setattr(isal, "CALL_BYTES_MAX", 100)
    isal_engine.combine([(3, 7)], sources, [memoryview(cut)])
    assert cut == whole
    isal_engine.combine([(1, 7)], [grown, sources[1]], [memoryview(grown)])
    isal_engine.combine([(1, 2)], [grown, sources[0]], [memoryview(grown)])
    assert grown == whole


def test_a_codec_is_an_engine_and_a_generator():
    assert codec_for(2, "numpy") == Codec(load("numpy"), "pq", 2)
    chosen = codec_for(2, "numpy")
    assert chosen.rows(3) == ((1, 1, 1), (1, 2, 4))
    assert chosen.decode_rows(3, (0, 1, 3), (2,)) == ((1, 1, 1),)
    with pytest.raises(CodecUnsupported, match="parity 0"):
        codec_for(0)


def test_nothing_heavy_is_imported_before_something_is_coded(monkeypatch):
    for name in [n for n in sys.modules if n.startswith(codec.__name__)]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("numpy", "ctypes", "zfec", "torch"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    again = import_module(codec.__name__)
    assert again.generators.rows("pq", 2, 2) == ((1, 1), (1, 2))


def test_speed_is_measured_in_gigabytes_of_data(monkeypatch):
    monkeypatch.setattr(speed, "CHUNK_BYTES", 1 << 12)
    ticks = iter(range(100))
    monkeypatch.setattr(speed, "perf_counter", lambda: next(ticks) * 1e-6)
    found = speed.measure(load("numpy"), 4, 2)
    assert found == speed.Speed(
        data=4,
        parity=2,
        encode_gb_per_second=pytest.approx(4 * 4096 / 1e3),
        decode_gb_per_second=pytest.approx(4 * 4096 / 1e3),
    )
