"""The kernels: functions of rows ``[..., K]`` with their derivatives."""
