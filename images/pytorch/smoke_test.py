"""Runs with the students' Python inside the pytorch image, with or without a GPU: python smoke_test.py"""

import os

import torch
import torchvision

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def a_gpu_that_was_attached_can_be_used():
    attached = os.path.exists("/dev/nvidiactl")
    assert attached == torch.cuda.is_available(), (
        f"attached: {attached}, usable by PyTorch: {torch.cuda.is_available()} (built for CUDA {torch.version.cuda})"
    )
    print("runs on", torch.cuda.get_device_name() if DEVICE == "cuda" else "the CPU: no GPU is attached")


def a_network_learns():
    torch.manual_seed(0)
    x = torch.randn(256, 8, device=DEVICE)
    y = x.sum(dim=1, keepdim=True)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10, losses


def torchvision_fits_torch():
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]], device=DEVICE)
    assert torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8], device=DEVICE), 0.5).tolist() == [0]


print("PyTorch", torch.__version__, "torchvision", torchvision.__version__)
for check in (a_gpu_that_was_attached_can_be_used, a_network_learns, torchvision_fits_torch):
    check()
    print("ok:", check.__name__.replace("_", " "))
