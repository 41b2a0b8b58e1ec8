"""Measuring codecs: bits a pixel of real files, PSNR, MS-SSIM, BD-rate."""
