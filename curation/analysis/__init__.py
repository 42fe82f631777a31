"""The analyze phase of one source: decode once, shots, crops, scores, descriptors, thumbnails."""
