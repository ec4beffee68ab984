"""Certificates: decisions that provably no perturbation of an observation changes."""

from __future__ import annotations

from marl_aajr.certificates.certificate import Certificate, CertificateRequest, CertifiedSize
from marl_aajr.certificates.certifying import certify
from marl_aajr.certificates.sandwich import ContradictionError

__all__ = ["Certificate", "CertificateRequest", "CertifiedSize", "ContradictionError", "certify"]
