"""What a dtype is called in C and in Triton, in registers and in memory: one line for each that kernels know."""

import torch

_NAMES = {  # C, Triton
    torch.float64: ("double", "tl.float64"),
    torch.float32: ("float", "tl.float32"),
    torch.bfloat16: ("float", "tl.float32"),
    torch.float16: ("float", "tl.float32"),
    torch.int64: ("int64_t", "tl.int64"),
    torch.int32: ("int32_t", "tl.int32"),
    torch.int16: ("int16_t", "tl.int16"),
    torch.int8: ("int8_t", "tl.int8"),
    torch.uint8: ("uint8_t", "tl.uint8"),
    torch.bool: ("uint8_t", "tl.int1"),
}
_OTHERS_IN_MEMORY = {
    torch.bfloat16: ("uint16_t", "tl.uint16"),
    torch.float16: ("_Float16", "tl.float16"),
    torch.bool: ("uint8_t", "tl.uint8"),
}
C_TYPES, TRITON_TYPES = ({dtype: names[i] for dtype, names in _NAMES.items()} for i in range(2))
C_MEMORY, TRITON_MEMORY = ({dtype: names[i] for dtype, names in (_NAMES | _OTHERS_IN_MEMORY).items()} for i in range(2))
