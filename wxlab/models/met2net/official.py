def load_official(*a, **k): raise NotImplementedError
def save_official(*a, **k): raise NotImplementedError
