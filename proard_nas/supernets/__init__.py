"""Supernets: architectures as values, elastic networks, slicing, costs. Importing registers the networks in timm."""

from .architecture import Architecture
from .cost import Cost
from .dyn_mobilenetv3 import DynMobileNetV3, MobileNetV3
from .dyn_proxyless import DynProxyless, Proxyless
from .dyn_resnet import DynResNet, ResNet
from .dyn_wide_resnet import DynWideResNet, WideResNet
from .family import SUPERNETS, Family, build_network, default_cfg, register_supernet
from .network import StudentNet
from .space import SearchSpace
from .supernet import Supernet, is_calibrated, load_statistics, statistics_of

__all__ = [
    "SUPERNETS",
    "Architecture",
    "Cost",
    "DynMobileNetV3",
    "DynProxyless",
    "DynResNet",
    "DynWideResNet",
    "Family",
    "MobileNetV3",
    "Proxyless",
    "ResNet",
    "SearchSpace",
    "StudentNet",
    "Supernet",
    "WideResNet",
    "build_network",
    "default_cfg",
    "is_calibrated",
    "load_statistics",
    "register_supernet",
    "statistics_of",
]
