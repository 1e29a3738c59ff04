"""Independent float64 transcriptions of the papers, one leaf at a time, in NumPy.

They share no code with the package. A rule is a class: made once per leaf, called with the gradient,
the parameter and the step (from 1), it returns what is added to the parameter.
"""
