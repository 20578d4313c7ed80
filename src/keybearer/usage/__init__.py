"""Usage: what an answer consumed, what it cost, who pays.

``meter``   tokens from a provider's answer, as it passes (pure)      ``prices``  tokens to micro-dollars (pure)
``record``  usage records and their sums                              ``limits``  budgets and rates
"""
