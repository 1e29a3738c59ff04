"""Fit a logistic regression with L-BFGS: a smooth, convex loss over all data, and a few steps to many digits.

The line search calls the loss as often as it needs, so it is handed over as `value_fn`. Loss and gradient at the point
that it accepted are kept in the state, where `of.value_and_grad_from_state` finds them for the next step.
"""

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import binary_cross_entropy_with_logits

import optimfn as of


def main(steps: int = 40) -> float:
    features, labels = load_breast_cancer(return_X_y=True)
    features = StandardScaler().fit_transform(features)
    x, y = torch.as_tensor(features), torch.as_tensor(labels, dtype=torch.float64)

    def loss(params):
        logits = x @ params["weight"] + params["bias"]
        decay = params["weight"].square().sum() / (2 * len(y))
        return binary_cross_entropy_with_logits(logits, y) + decay

    params = {"weight": torch.zeros(30, dtype=torch.float64), "bias": torch.zeros((), dtype=torch.float64)}
    tx = of.lbfgs()
    state, value_and_grad = tx.init(params), of.value_and_grad_from_state(loss)
    for step in range(steps + 1):
        value, grads = value_and_grad(params, state=state)
        if step % 5 == 0:
            print(f"step {step:2}: loss {value.item():.12f}, norm of the gradient {of.tree.norm(grads).item():.1e}")
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        params = of.apply_updates(params, updates)

    reference = LogisticRegression(C=1.0, tol=1e-12, max_iter=10_000).fit(features, labels)
    best = {"weight": torch.as_tensor(reference.coef_[0]), "bias": torch.as_tensor(reference.intercept_[0])}
    print(f"scikit-learn: {loss(best).item():.12f}")
    return loss(params).item() - loss(best).item()


if __name__ == "__main__":
    main()
