import numpy as np
class Labels:
    def __init__(self,names): self.names=tuple(names)
    def ids(self,v): return np.array([self.names.index(str(x)) for x in v])
    def values(self,i): return [self.names[int(k)] for k in i]
    def __len__(self): return len(self.names)
