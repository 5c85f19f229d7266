"""Dataset distillation with many student initialisations as one program.

Letters used everywhere: ``S`` students of a run, ``R`` independent runs, ``K = R·S`` students in all, ``C`` classes,
``M`` synthetic images per class (ipc), ``N = C·M`` synthetic images, ``G`` gradient groups (1, or ``C`` when gradients
are matched class by class), ``B`` real images per group, ``D, H, W`` channels, height, width, ``P`` parameters of one
student (padding included), ``T`` inner steps; ``θ [K, P]`` student weights, ``φ`` everything that is learned. Tensors
put the student axis first.
"""
