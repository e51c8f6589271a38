"""GPTQ and AWQ by the words that their own writers give, written down here in hex.

The matrix has 16 rows (in) and 8 columns (out) in groups of 8 rows; the code of row k and column n
is (k + n) mod 16. AutoGPTQ 0.7.1 (`QuantLinear.pack`) and AutoAWQ 0.2.9 (`WQLinear_GEMM`) write the
words below for it, tiled to the 32 columns that they need; nothing of ours packed them. The zeros
of gptq_v2 are those of AutoGPTQ without its subtraction.
"""

import numpy as np
import pytest
from safetensors.numpy import save_file

from zojax.models._packed import parse_packing, read_packed
from zojax.models._tensors import open_file

ZEROS = np.array([[8, 1, 2, 3, 4, 5, 6, 7], [9, 15, 8, 8, 8, 8, 8, 8]])
SCALES = np.stack([2.0 ** -np.arange(8), 2.0 ** (np.arange(8) - 7)])  # exact in float16

GPTQ_CODES = """
76543210 87654321 98765432 A9876543 BA987654 CBA98765 DCBA9876 EDCBA987
FEDCBA98 0FEDCBA9 10FEDCBA 210FEDCB 3210FEDC 43210FED 543210FE 6543210F
"""
GPTQ_ZEROS = "65432107 777777E8"
GPTQ_V2_ZEROS = "76543218 888888F9"
AWQ_CODES = """
75316420 86427531 97538642 A8649753 B975A864 CA86B975 DB97CA86 ECA8DB97
FDB9ECA8 0ECAFDB9 1FDB0ECA 20EC1FDB 31FD20EC 420E31FD 531F420E 6420531F
"""
AWQ_ZEROS = "75316428 888F8889"

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 8, "sym": False, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm"}


def words(text, *shape):
    return np.array([int(w, 16) for w in text.split()], np.uint32).view(np.int32).reshape(shape)


def decoded(folder, about, codes, zeros, **more):
    tensors = {"m.qweight": codes, "m.qzeros": zeros, "m.scales": SCALES.astype(np.float16)}
    save_file(tensors | more, folder / "model.safetensors")
    packing = parse_packing(about, folder / "config.json")
    stored = open_file(folder / "model.safetensors")
    return np.asarray(read_packed("m", stored, packing, np.float32).materialize())


def expected(zeros=ZEROS):
    k, n = np.mgrid[:16, :8]
    return ((k + n) % 16 - zeros[k // 8, n]) * SCALES[k // 8, n]


def gptq(zeros):
    return words(GPTQ_CODES, 2, 8), words(zeros, 2, 1)


@pytest.mark.parametrize(
    ("about", "tensors"),
    [
        (GPTQ, gptq(GPTQ_ZEROS)),
        (GPTQ | {"checkpoint_format": "gptq"}, gptq(GPTQ_ZEROS)),
        (GPTQ | {"checkpoint_format": "gptq_v2"}, gptq(GPTQ_V2_ZEROS)),
        (AWQ, (words(AWQ_CODES, 16, 1), words(AWQ_ZEROS, 2, 1))),
    ],
    ids=["old gptq", "gptq", "gptq_v2", "awq"],
)
def test_the_words_of_other_writers(about, tensors, tmp_path):
    np.testing.assert_array_equal(decoded(tmp_path, about, *tensors), expected())


def test_a_zero_of_zero_has_borrowed_from_the_next(tmp_path):
    """GPTQModel takes 0x11111111 from words of gptq_v2 when it writes gptq, and adds it again."""
    zeros = ZEROS.copy()
    zeros[1, :2] = 0, 15
    v2 = words("76543218 888888F0", 2, 1)
    v1 = words("65432107 777777DF", 2, 1)
    codes = words(GPTQ_CODES, 2, 8)
    about = GPTQ | {"checkpoint_format": "gptq_v2"}
    np.testing.assert_array_equal(decoded(tmp_path, about, codes, v2), expected(zeros))
    np.testing.assert_array_equal(decoded(tmp_path, GPTQ, codes, v1), expected(zeros))


@pytest.mark.parametrize("stored", ["77777777 77777777", "88888888 88888888"])
def test_symmetric_zeros_are_eight_whichever_way_they_are_stored(stored, tmp_path):
    """GPTQModel 5 says gptq over symmetric zeros that are stored as gptq_v2 does."""
    found = decoded(tmp_path, GPTQ | {"sym": True}, *gptq(stored))
    np.testing.assert_array_equal(found, expected(np.full((2, 8), 8)))


def test_an_order_by_activation_is_needed_and_refused(tmp_path):
    about = GPTQ | {"desc_act": True}
    plain = np.repeat([0, 1], 8).astype(np.int32)
    found = decoded(tmp_path, about, *gptq(GPTQ_ZEROS), **{"m.g_idx": plain})
    np.testing.assert_array_equal(found, expected())
    with pytest.raises(ValueError, match=r"desc_act is true and there is no m\.g_idx"):
        decoded(tmp_path, about, *gptq(GPTQ_ZEROS))
    with pytest.raises(ValueError, match="rows of m are in groups by activation"):
        decoded(tmp_path, about, *gptq(GPTQ_ZEROS), **{"m.g_idx": plain[::-1].copy()})
