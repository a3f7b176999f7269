"""The doubles themselves: they have what a version has, and nothing else."""

from __future__ import annotations

import pytest
from trt_double import _BEHAVIOURS, VERSIONS, double

DIFFERENCES = [
    # version, class, name, present
    ("10.3", "ICudaEngine", "create_runtime_config", False),
    ("10.13", "ICudaEngine", "create_runtime_config", True),
    ("10.3", "ICudaEngine", "device_memory_size", True),
    ("11.4", "ICudaEngine", "device_memory_size", False),
    ("11.4", "IBuilderConfig", "set_compute_capability", False),
    ("rtx", "IBuilderConfig", "set_compute_capability", True),
    ("10.13", "IBuilderConfig", "int8_calibrator", True),
    ("11.4", "IBuilderConfig", "int8_calibrator", False),
    ("10.3", "OnnxParser", "set_builder_config", False),
    ("rtx", "IExecutionContext", "is_stream_capturable", True),
    ("11.4", "IExecutionContext", "is_stream_capturable", False),
    ("rtx", "IPluginRegistry", "get_plugin_creator", False),
]


@pytest.mark.parametrize(("version", "kind", "name", "present"), DIFFERENCES)
def test_a_class_has_the_names_of_its_version(version: str, kind: str, name: str, present: bool) -> None:
    assert (name in dir(getattr(double(version), kind))) is present


@pytest.mark.parametrize("version", VERSIONS)
def test_a_name_outside_the_version_raises(version: str) -> None:
    module = double(version)
    with pytest.raises(AttributeError, match="has no 'IInt8Everything'"):
        module.IInt8Everything  # noqa: B018
    config = module.Builder(None).create_builder_config()
    with pytest.raises(AttributeError, match="has no attribute 'max_workspace_size'"):
        config.max_workspace_size = 1
    with pytest.raises(AttributeError):
        config.set_workspace(1)
    with pytest.raises(NotImplementedError, match=r"no behaviour for IBuilderConfig.get_preview_feature"):
        config.get_preview_feature(None)


def test_flags_have_the_numbers_of_their_version() -> None:
    assert int(double("10.3").NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 1
    assert int(double("11.4").NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 0
    assert "FP16" in double("10.13").BuilderFlag.__members__
    assert "FP16" not in double("rtx").BuilderFlag.__members__


@pytest.mark.parametrize("kind", list(_BEHAVIOURS))
def test_every_behaviour_is_of_a_name_that_some_version_has(kind: str) -> None:
    """A method of the double that no version has could never be called by code that is right."""
    public = {name for name in vars(_BEHAVIOURS[kind]) if not name.startswith("_")}
    known: set[str] = set()
    for version in VERSIONS:
        known |= set(double(version)._api.get(kind, {}).get("attrs", ()))
    assert public <= known


def test_a_network_that_is_not_strongly_typed_is_found() -> None:
    module = double("10.3")
    builder = module.Builder(None)
    network = builder.create_network(0)
    with pytest.raises(AssertionError, match="not strongly typed"):
        builder.build_serialized_network(network, builder.create_builder_config())
