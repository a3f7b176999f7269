"""Where figures of `edgemm.engine.targets` were found again, beside the publication that they were copied from.

The publications are NVIDIA's, and were not at hand in 2026-11 when the table was checked: each figure was looked for in
public pages, many of them other people's copies of a data sheet. A figure that is not listed was not found; it stands
in the table as it was copied, and `edgemm targets` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_DLA = "https://github.com/NVIDIA/Deep-Learning-Accelerator-SW"
_NANO = "https://www.scribd.com/document/673174036/Orin-nano-datasheet"
_SUPER = "https://www.brojogopalsapui.com/ai-foundations/sub_contents/AI_hardware/jetson_orin_nano_light.html"
_ORIN_SUMMARY = "http://mzph.cn/web/30785.shtml"
_NX = "https://github.com/YahboomTechnology/Jetson_Orin_NX"
_XAVIER = "https://gist.github.com/discort/2213fcd6a2d408e930d3b53334332f9d"
_THOR = "https://learnaivisually.com/ai-explained/jetson-thor-edge-blackwell"
_SPARK = "https://ai-infrastructure.net/dgx-spark/"
_4090 = "https://hmc-tech.com/gpus/nvidia-geforce-rtx-4090-vs-nvidia-rtx-pro-5000-blackwell"
_5090 = "https://pocketmags.com/linux-format-magazine/may-2025/articles/nvidia-geforce-rtx-5090"
_3090 = "https://ctc.archdevil.net/blog/23/674d47808ec559d480fae6d8"
_T4 = "https://sysrqmts.com/gpus/compare/nvidia-a100-sxm4-40-gb-vs-nvidia-tesla-t4"
_A100 = "https://hmc-tech.com/gpu/nvidia-l4-vs-nvidia-a100-40gb"
_L4 = "https://fpsbench.com/compare/gpu/nvidia-l4-vs-nvidia-tesla-m40"
_L40S = "https://hmc-tech.com/gpu/nvidia-l40s-vs-nvidia-t40"
_H100 = "https://lzwjava.github.io/nvidia-h200-gpu-specs-en"
_H100_RATES = "https://hmc-tech.com/gpu/nvidia-gb200-vs-nvidia-h100-sxm"
_H200 = "https://itkb.uw.cz/2026/06/nvidia-h200-vs-b300-precisions-cores.html"
_B200 = "https://haink.org/knowledge/compare/h100-vs-h200-vs-b200.html"


def _found(url: str, *figures: str) -> dict[str, str]:
    return dict.fromkeys(figures, url)


CHECKED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        # NVIDIA gives 171 sparse int8 TOPS for the GPU and two DLAs; fp32 and fp16 follow from the same SMs and clock.
        "agx-orin-64gb": {**_found(_DLA, "int8", "fp16", "dla_cores"), **_found(_ORIN_SUMMARY, "fp32", "memory_gb")},
        "agx-orin-32gb": _found(_ORIN_SUMMARY, "memory_gb"),
        "orin-nx-16gb": _found(_NX, "memory_gb"),
        "orin-nx-16gb-super": _found(_NX, "memory_gb"),
        "orin-nx-8gb": _found(_NX, "memory_gb"),
        "orin-nx-8gb-super": _found(_NX, "memory_gb"),
        # The data sheet: 20 and 10 dense int8 TOPS, cores and clock, from which the other rates follow.
        "orin-nano-8gb": {
            **_found(_NANO, "memory_gb", "int8", "fp16", "fp32"),
            **_found(_SUPER, "bandwidth_gb_s", "dla_cores"),
        },
        "orin-nano-8gb-super": _found(_SUPER, "memory_gb", "bandwidth_gb_s", "int8", "fp16", "fp32", "dla_cores"),
        "orin-nano-4gb": _found(_NANO, "memory_gb", "int8", "fp16", "fp32"),
        "orin-nano-4gb-super": _found(_NANO, "memory_gb"),
        "agx-xavier": _found(_XAVIER, "memory_gb", "bandwidth_gb_s"),
        # 2070 with sparsity.
        "thor-t5000": _found(_THOR, "fp4"),
        "rtx-3090": _found(_3090, "fp32"),
        # Rates with accumulation in fp16, as the whitepaper's first column has them.
        "rtx-4090": _found(_4090, "memory_gb", "bandwidth_gb_s", "fp32", "fp16", "int8", "fp8"),
        # fp16 838 and fp4 3352 with sparsity.
        "rtx-5090": _found(_5090, "memory_gb", "bandwidth_gb_s", "fp32", "fp16", "fp4"),
        "dgx-spark": _found(_SPARK, "memory_gb", "bandwidth_gb_s", "fp4"),
        "t4": _found(_T4, "memory_gb", "bandwidth_gb_s", "fp32", "fp16"),
        "a100-80gb": _found(_A100, "fp32", "fp16", "int8"),
        "l4": _found(_L4, "memory_gb", "bandwidth_gb_s", "fp32"),
        # 366 and 733 from cores and clock; the data sheet rounds down to 362 in fp16.
        "l40s": _found(_L40S, "memory_gb", "fp32", "int8", "fp8"),
        "h100": {**_found(_H100, "memory_gb", "bandwidth_gb_s"), **_found(_H100_RATES, "fp32", "fp16", "fp8", "int8")},
        "h200": _found(_H200, "memory_gb", "bandwidth_gb_s", "fp16", "fp8"),
        # 9000 and 18000 with sparsity; that page gives 192 GB, of which a DGX B200 offers 180.
        "b200": _found(_B200, "bandwidth_gb_s", "fp8", "fp4"),
    }
)
"""By target: for each figure that was found again, the page."""
