"""A TOF PET scanner: from an activity and a CT to the images with and without attenuation correction.

Most of its modules need torch, so this file imports none of them:

    geometry    the scanner's sampling and its TOF resolution
    scan        counts, blur and reconstruction, as settings
    projector   line integrals, their exact adjoint, attenuation factors
    slabs       some slices a thread
    scatter     the broad shape of scattered coincidences
    smoothing   Gaussian filters on tensors
    osem        image reconstruction
    simulate    counts with noise, scatter and randoms; NAC and corrected images

What it leaves out: oblique planes, detector blocks and gaps, a physical scatter model, motion, coils and
table. It shows how an error of an attenuation map spreads, not what the absolute bias of a scanner is.
"""
