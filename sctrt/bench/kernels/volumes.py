"""The volumes that slices, fusion and resampling are timed on."""

VOLUME = {"full": (700, 400, 400), "quick": (350, 200, 200), "tiny": (12, 10, 14)}  # z, y, x: a body in 1.5 mm
CHECKED = 16  # slices of a volume that are compared with the reference
