"""Matrix products through oneDNN: the same up to rounding, with their gradients, and only where they help."""

import pytest
import torch

from rome_lens.backends import fast_products, products

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this PyTorch has no oneDNN",
)


class Told:
    """What of a machine decides."""

    def __init__(self, monkeypatch, tmp_path):
        self.monkeypatch, self.processors = monkeypatch, tmp_path / "cpuinfo"
        monkeypatch.setattr(products, "Path", lambda _: self.processors)
        self.is_("GenuineIntel", "AVX512")

    def is_(self, maker, capability):
        self.processors.write_text(f"processor: 0\nvendor_id\t: {maker}\n", "utf-8")
        self.monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        products._from_intel.cache_clear()


@pytest.fixture
def machine(monkeypatch, tmp_path):
    yield Told(monkeypatch, tmp_path)
    products._from_intel.cache_clear()


def routed(device=CPU, dtype=torch.float32):
    """Whether products go another way while the block lasts."""
    with fast_products(device=device, dtype=dtype):
        return bool(torch.overrides._get_current_function_mode_stack())


@needs_onednn
@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_who_takes_onednn(machine):
    machine.is_("AuthenticAMD", "AVX512")
    assert routed()
    assert not routed(dtype=torch.float64)
    assert not routed(device=torch.device("meta"))
    with torch.backends.mkldnn.flags(enabled=False):
        assert not routed()
    machine.is_("AuthenticAMD", "AVX2")
    assert not routed()
    # Its own library has kernels for these, which are faster.
    machine.is_("GenuineIntel", "AVX512")
    assert not routed()


@needs_onednn
def test_a_system_without_a_list_of_processors_is_asked_in_its_way(machine, monkeypatch):
    machine.is_("AuthenticAMD", "AVX512")
    machine.processors.unlink()
    monkeypatch.setattr(products.platform, "processor", lambda: "Intel64 Family 6 Model 85 Stepping 7, GenuineIntel")
    assert not routed()
    products._from_intel.cache_clear()
    monkeypatch.setattr(products.platform, "processor", lambda: "AMD64 Family 25 Model 1, AuthenticAMD")
    assert routed()


@needs_onednn
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(3, 24), (2, 5, 24)])
def test_the_products_and_their_gradients(machine, shape, biased):
    machine.is_("AuthenticAMD", "AVX512")
    drawn = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=drawn) for size in (shape, (16, 24), (16,)))
    toward = torch.randn(*shape[:-1], 16, generator=drawn)

    def made():
        asked = x.clone().requires_grad_()
        out = torch.nn.functional.linear(asked, weight, bias if biased else None)
        flat = torch.addmm(bias, asked.reshape(-1, 24), weight.t())
        ((out * toward).sum() + flat.square().sum()).backward()
        return out.detach(), flat.detach(), asked.grad

    plain = made()
    with fast_products(device=CPU, dtype=torch.float32):
        fast = made()
    for ours, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_weights_that_learn_are_left_to_pytorch(machine):
    machine.is_("AuthenticAMD", "AVX512")
    x, weight = torch.randn(3, 24), torch.randn(16, 24, requires_grad=True)
    with fast_products(device=CPU, dtype=torch.float32):
        torch.nn.functional.linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(dim=0).expand(16, -1))
