"""Physical constants of the simulated atmosphere, SI."""

RADIUS = 6.371e6  # m
ROTATION = 7.292e-5  # 1/s
GRAVITY = 9.80616  # m/s2
GAS_CONSTANT = 287.04  # J/kg/K, dry air
HEAT_CAPACITY = 1004.64  # J/kg/K, dry air at constant pressure
KAPPA = GAS_CONSTANT / HEAT_CAPACITY
LATENT_HEAT = 2.5e6  # J/kg
DAY = 86400.0  # s
