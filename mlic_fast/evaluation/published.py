"""Rate and distortion that papers report: Kodak's 24 images, models trained for MSE.

Points are (bits a pixel, PSNR in dB): tables of the MLIC papers (arXiv 2211.07273) and of MLIC++
(arXiv 2307.15421). Their BD-rates are against VTM-17.0, whose own points they do not print; those
of VTM here are an older version's, from the results that CompressAI publishes.
"""

from __future__ import annotations

Points = tuple[tuple[float, float], ...]

KODAK_IMAGES = 24
KODAK: dict[str, Points] = {
    "MLIC": (
        (0.1162, 29.2291),
        (0.1896, 30.7639),
        (0.2908, 32.3709),
        (0.4375, 34.1024),
        (0.6136, 35.7542),
        (0.8415, 37.4026),
    ),
    "MLIC+": (
        (0.1124, 29.1983),
        (0.1823, 30.7816),
        (0.2815, 32.4008),
        (0.4270, 34.1389),
        (0.5912, 35.7631),
        (0.8103, 37.3736),
    ),
    "MLIC++": (
        (0.1075, 29.161),
        (0.1747, 30.7137),
        (0.2721, 32.3345),
        (0.4129, 34.1702),
        (0.5923, 35.8161),
        (0.8025, 37.3229),
    ),
    "VTM": (
        (0.0482, 26.1448),
        (0.1125, 28.4930),
        (0.2458, 31.1999),
        (0.4905, 34.2615),
        (0.8748, 37.4198),
        (1.4308, 40.4244),
        (2.3246, 43.5058),
        (3.6326, 46.5918),
    ),
}
#: BD-rate in percent against VTM-17.0, as printed.
AGAINST_VTM = {"MLIC": -8.05, "MLIC+": -11.39, "MLIC++": -13.39}
