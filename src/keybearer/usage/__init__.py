"""Usage: what an answer consumed, what it cost, who pays.

``meter``   tokens from a provider's answer, as it passes (pure)      ``prices``      tokens to micro-dollars (pure)
``record``  usage records and their sums                              ``limits``      budgets and rates (pure)
``skim``    a few values of an answer that is too large to keep (pure)  ``bounds``    the most that a call may use (pure)
``search``  where a stream's events state usage (pure)                ``own_prices``  what the operator says that models cost (pure)
"""
