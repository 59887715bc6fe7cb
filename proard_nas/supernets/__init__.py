"""Supernets: architectures as values, elastic networks, slicing, costs. Importing registers the networks in timm."""

from .cost import Cost
from .dyn_mobilenetv3 import DynMobileNetV3, MobileNetV3
from .dyn_resnet import DynResNet, ResNet
from .network import Family, StudentNet
from .space import Architecture, SearchSpace
from .supernet import Supernet, is_calibrated, load_statistics, statistics_of

SUPERNETS = (
    "proard_dyn_mobilenetv3",
    "proard_dyn_resnet50",
    "proard_dyn_resnet50_fine",
    "proard_dyn_resnet_small",
    "proard_dyn_resnet_tiny",
)

__all__ = [
    "SUPERNETS",
    "Architecture",
    "Cost",
    "DynMobileNetV3",
    "DynResNet",
    "Family",
    "MobileNetV3",
    "ResNet",
    "SearchSpace",
    "StudentNet",
    "Supernet",
    "is_calibrated",
    "load_statistics",
    "statistics_of",
]
