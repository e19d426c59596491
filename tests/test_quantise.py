"""Quantised arrays: the same bits in every execution, bounds of the error, error feedback."""

import sys

import numpy as np
import pytest

from minipar import execution, quantise, set_num_threads
from minipar.context import KERNELS, current, set_kernels
from minipar.execution import Kernel
from minipar.quantise import dequantise, pack_signs, unpack_signs

SIZES = [0, 1, 7, 8, 9, 255, 256, 257, 10007]
FLOATS = [np.float16, np.float32, np.float64]
BLOCKS = [256, 2, 64, 1000]


@pytest.fixture(params=KERNELS)
def kernels(request):
    set_kernels(request.param)
    yield request.param
    set_kernels("compiled")


def numbers(n, dtype=np.float32, seed=0):
    """Numbers of many magnitudes, with zeros, halves between two levels, a block of zeros."""
    rng = np.random.default_rng([seed, n])
    x = rng.standard_normal(n) * 2.0 ** rng.integers(-8, 8, n)
    x[::7] = 0
    x[300:420] = rng.integers(-254, 255, x[300:420].size) / 2
    x[512:768] = -0.0
    return x.astype(dtype)


def everything(x, residual, block):
    """What the module makes of x: arrays, among them those that it has written to."""
    made = []
    for bits in (8, 4):
        for owed in (None, residual.copy()):
            packed, scales = quantise.quantise(x, bits, block, owed)
            made += [packed, scales, dequantise(packed, scales, x.size, bits, block, x.dtype)]
            made += [] if owed is None else [owed]
    for owed in (None, residual.copy()):
        bits, scale = pack_signs(x, owed)
        made += [bits, scale, unpack_signs(bits, scale, x.size, x.dtype)]
        made += [] if owed is None else [owed]
    return made


def in_all_executions(make):
    """make() in every execution, by its name."""
    results = {}
    try:
        for kernels in KERNELS:
            set_kernels(kernels)
            results[kernels] = make()
    finally:
        set_kernels("compiled")
    return results


def bits_of(arrays):
    """Bytes, where all NaN are one."""
    return [np.where(np.isnan(a), np.nan, a).astype(a.dtype).tobytes() if a.dtype.kind == "f"
            else a.tobytes() for a in arrays]


def check_executions(n, dtype, block):
    x, residual = numbers(n, dtype), numbers(n, quantise.accumulator(np.dtype(dtype)), 1)
    made = in_all_executions(lambda: everything(x, residual, block))
    expected = made.pop("reference")
    for name, arrays in made.items():
        assert [a.dtype for a in arrays] == [a.dtype for a in expected]
        assert bits_of(arrays) == bits_of(expected), (name, dtype, block)


@pytest.mark.parametrize("n", SIZES)
def test_every_execution_gives_the_same_bits(n):
    """Every pair of size, type and block."""
    for i, block in enumerate(BLOCKS):
        check_executions(n, FLOATS[(SIZES.index(n) + i) % 3], block)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", SIZES)
def test_every_execution_gives_the_same_bits_for_every_type_and_block(n, dtype):
    for block in BLOCKS:
        check_executions(n, dtype, block)


def test_threads_change_no_bit():
    x, residual = numbers(200_001), numbers(200_001, seed=1)
    before, made = current().threads, []
    for number in (1, 2):
        set_num_threads(number)
        made.append(bits_of(everything(x, residual, 256)))
    current().threads = before
    assert made[0] == made[1]


ODD = [np.nan, -np.nan, np.inf, -np.inf, 1e-40, -3e-45, 0.0, -0.0, np.finfo("f").max, -1.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_odd_numbers_give_the_same_bits_too(dtype):
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.choice(ODD, 300), rng.choice(ODD[4:], 700)]).astype(dtype)
    subnormal = np.finfo(dtype).smallest_subnormal * rng.integers(-300, 300, 1000).astype(dtype)
    for odd in (x, x[300:].copy(), subnormal):
        made = in_all_executions(lambda: everything(odd, np.zeros(odd.size, dtype), 32))
        expected = bits_of(made["reference"])
        assert all(bits_of(arrays) == expected for arrays in made.values())


@pytest.mark.parametrize("bits, levels", [(8, 127), (4, 7)])
@pytest.mark.parametrize("n", SIZES)
def test_what_is_quantised_comes_back_within_half_a_scale(n, bits, levels, kernels):
    x = numbers(n, np.float64)
    packed, scales = quantise.quantise(x, bits)
    blocks = [x[i:i + 256] for i in range(0, n, 256)]
    assert packed.dtype == (np.int8 if bits == 8 else np.uint8)
    assert packed.shape == (-(-n * bits // 8),) and scales.shape == (len(blocks),)
    assert scales.tolist() == [np.abs(block).max() / levels for block in blocks]
    y = dequantise(packed, scales, n, bits, dtype=np.float64)
    assert (np.abs(x - y) <= np.repeat(scales, 256)[:n] / 2 * (1 + 1e-12)).all()
    assert (y[512:768] == 0).all()


def test_levels_are_rounded_to_the_nearest_and_halves_to_the_even_one(kernels):
    x = np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 126.4], np.float32)
    packed, scales = quantise.quantise(x)
    assert scales.tolist() == [1] and packed.tolist() == [127, 0, 2, 2, 0, -2, -126, 126]
    packed, scales = quantise.quantise(np.array([7, -7, 2.5, -1, 3.5], np.float32), 4)
    assert scales.tolist() == [1] and packed.tolist() == [0x97, 0xF2, 0x04]
    assert dequantise(packed, scales, 5, 4).tolist() == [7, -7, 2, -1, 4]


@pytest.mark.parametrize("n", SIZES)
def test_signs_have_the_mean_magnitude_as_their_scale(n, kernels):
    x = numbers(n)
    bits, scale = pack_signs(x)
    assert bits.dtype == np.uint8 and bits.tolist() == np.packbits(
        x < 0, bitorder="little").tolist()
    mean = np.abs(x.astype(np.float64)).mean() if n else 0
    assert scale.shape == (1,) and scale[0] == pytest.approx(mean, rel=1e-7)
    assert unpack_signs(bits, scale, n).tolist() == np.where(x < 0, -scale, scale).tolist()


def codecs(n):
    """{name: a function of (x, residual) -> what the receiver makes of it}."""
    def by_levels(bits):
        def send(x, residual):
            packed, scales = quantise.quantise(x, bits, 64, residual)
            return dequantise(packed, scales, n, bits, 64, x.dtype).reshape(x.shape)
        return send

    def by_signs(x, residual):
        return unpack_signs(*pack_signs(x, residual), n, x.dtype).reshape(x.shape)
    return {"8 bits": by_levels(8), "4 bits": by_levels(4), "signs": by_signs}


@pytest.mark.parametrize("codec", codecs(0))
@pytest.mark.parametrize("n", SIZES)
def test_a_residual_is_what_the_receiver_has_not_got(n, codec, kernels):
    x, residual = numbers(n), numbers(n, seed=1) / 16
    y = x + residual
    received = codecs(n)[codec](x, residual)
    assert residual.tolist() == (y - received).tolist()


@pytest.mark.parametrize("codec", codecs(0))
def test_with_feedback_nothing_is_lost_in_many_steps(codec):
    xs = np.random.default_rng(0).standard_normal((40, 5, 200)) + 0.1
    residual, send = np.zeros((5, 200)), codecs(1000)[codec]
    received = sum(send(x, residual) for x in xs)
    assert np.abs(received + residual - xs.sum(0)).max() < 1e-12
    assert np.abs(residual).max() < {"8 bits": 0.05, "4 bits": 0.5, "signs": 8}[codec]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_that_is_not_finite_comes_back_as_nan_and_owes_what_it_did(bad, kernels):
    for bits in (8, 4):
        x, residual = np.ones(96, np.float32), np.full(96, 0.25, np.float32)
        x[40] = bad
        packed, scales = quantise.quantise(x, bits, 32, residual)
        y = dequantise(packed, scales, 96, bits, 32)
        assert np.isfinite(scales).tolist() == [True, False, True] and not packed[
            packed_range(bits, 32, 64)].any()
        assert np.isnan(y[32:64]).all() and (y[:32] == 1.25).all() and (y[64:] == 1.25).all()
        assert (residual == np.repeat([0, 0.25, 0], 32)).all()
    x, residual = np.ones(96, np.float32), np.full(96, 0.25, np.float32)
    x[40] = bad
    packed, scale = pack_signs(x, residual)
    assert not np.isfinite(unpack_signs(packed, scale, 96)).any() and (residual == 0.25).all()


def packed_range(bits, start, stop):
    return slice(start * bits // 8, stop * bits // 8)


def test_the_largest_and_the_smallest_numbers_come_back_finite_and_near(kernels):
    for dtype in (np.float32, np.float64):
        info = np.finfo(dtype)
        for top in (info.max, np.nextafter(info.max, dtype(0)), info.smallest_subnormal * 90):
            for bits in (8, 4):
                x = np.array([top, -top, 0, top / 3], dtype)
                packed, scales = quantise.quantise(x, bits)
                y = dequantise(packed, scales, 4, bits, dtype=dtype)
                assert np.isfinite(y).all()
                assert (np.abs(x - y) <= scales[0] * dtype(0.500001)).all()


@pytest.mark.skipif(execution.compiler() is None or sys.platform != "linux",
                    reason="kernels are emulated with a C++ compiler, on Linux")
@pytest.mark.parametrize("way", ["compiled", "emulated"])
def test_kernels_write_all_of_their_outputs_and_nothing_after_them(way):
    set_kernels(way)
    try:
        for n in SIZES:
            x, rows = numbers(n), -(-n // 64)
            for bits, kind in ((8, np.int8), (4, np.uint8)):
                packed, scales = quantise.quantise(x, bits, 64)
                size = packed.size
                q, s = np.full(size + 9, 99, kind), np.full(rows + 9, 99, np.float32)
                y = np.full(n + 9, 99, np.float32)
                Kernel("quantise.cu", f"quantise_{bits}", rows="rows", width="size").build(
                    x.dtype)(x, q, s, rows, 64, n)
                Kernel("quantise.cu", f"dequantise_{bits}", rows="rows", width="size").build(
                    x.dtype)(q, s, y, rows, 64, n)
                assert (q[:size] == packed).all() and (s[:rows] == scales).all()
                assert (y[:n] == dequantise(packed, scales, n, bits, 64)).all()
                assert all((a[-9:] == 99).all() for a in (q, s, y))
            b, y = np.full(-(-n // 8) + 9, 99, np.uint8), np.full(n + 9, 99, np.float32)
            Kernel("quantise.cu", "pack_signs", rows="rows").build(
                x.dtype)(x, b, 2.0, -(-n // 4096), n)
            Kernel("quantise.cu", "unpack_signs", elements="n").build(x.dtype)(b, y, 2.0, n)
            assert (y[:n] == np.where(x < 0, -2, 2)).all()
            assert (b[-9:] == 99).all() and (y[-9:] == 99).all()
    finally:
        set_kernels("compiled")


def test_arrays_of_any_shape_and_layout_are_taken_and_an_out_is_filled(kernels):
    x = numbers(120).reshape(4, 30)
    unaligned = np.frombuffer(b"." + x.tobytes(), np.float32, 30, 1)
    assert not unaligned.flags.aligned
    for part in (unaligned, x[:, ::2], x.T, x[1:3], np.array(2.5, np.float32)):
        packed, scales = quantise.quantise(part, 8, 16)
        flat = quantise.quantise(np.ascontiguousarray(part).reshape(-1), 8, 16)
        assert packed.tolist() == flat[0].tolist() and scales.tolist() == flat[1].tolist()
        out = np.empty(part.shape, np.float32)
        assert dequantise(packed, scales, part.size, 8, 16, out=out) is out
        assert np.abs(out - part).max() <= scales.max() / 2 * 1.0001


@pytest.mark.parametrize("call, error, said", [
    (lambda x: quantise.quantise(x, 2), ValueError, "quantise: bits is 8 or 4, not 2"),
    (lambda x: quantise.quantise(x, 8, 3), ValueError, "a block is of 2, 4, 6, .* not 3"),
    (lambda x: quantise.quantise(x.astype(int)), TypeError, "x is an ndarray of .*, not int64"),
    (lambda x: quantise.quantise([1.0]), TypeError, "x is an ndarray of .*, not list"),
    (lambda x: quantise.quantise(x, residual=x[:2]), TypeError,
     r"residual is float32 \(2,\), where x of float32 \(4,\) needs float32 \(4,\)"),
    (lambda x: pack_signs(x, x.astype("d")), TypeError, r"pack_signs: residual is float64 \(4,\)"),
    (lambda x: pack_signs(x, np.zeros(8, "f")[::2]), ValueError, r"\(4,\) is not contiguous"),
    (lambda x: dequantise(np.zeros(3, np.int8), x[:1], 4), ValueError,
     r"packed is int8 \(3,\), not int8 \(4,\)"),
    (lambda x: dequantise(np.zeros(4, np.int8), x, 4), ValueError,
     r"scales is float32 \(4,\), not float32 \(1,\)"),
    (lambda x: dequantise(np.zeros(4, np.int8), x[:1], 4, out=x[:3]), ValueError,
     "out is of 3 elements, where 4 in C order"),
    (lambda x: unpack_signs(np.zeros(1, np.uint8), x, 4, int), TypeError, "floating|float16"),
    (lambda x: unpack_signs(np.zeros(1, np.int8), x, 4), ValueError,
     r"bits is int8 \(1,\), not uint8 \(1,\)")])
def test_what_does_not_fit_is_refused_by_name(call, error, said):
    with pytest.raises(error, match=said):
        call(np.ones(4, np.float32))
