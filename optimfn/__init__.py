"""Pure-functional, composable optimizer transformations for PyTorch."""

from . import cuda as cuda
from . import distributed as distributed
from . import optim as optim
from . import testing as testing
from . import tree as tree
from ._algorithms.matrix._adamuon import AdaMuonState as AdaMuonState
from ._algorithms.matrix._adamuon import adamuon as adamuon
from ._algorithms.matrix._adamuon import scale_by_adamuon as scale_by_adamuon
from ._algorithms.matrix._dion import DionState as DionState
from ._algorithms.matrix._dion import dion as dion
from ._algorithms.matrix._dion import scale_by_dion as scale_by_dion
from ._algorithms.matrix._dion2 import Dion2State as Dion2State
from ._algorithms.matrix._dion2 import dion2 as dion2
from ._algorithms.matrix._dion2 import scale_by_dion2 as scale_by_dion2
from ._algorithms.matrix._eigenbasis import EigenbasisState as EigenbasisState
from ._algorithms.matrix._eigenbasis import eigenbasis as eigenbasis
from ._algorithms.matrix._kl_shampoo import kl_shampoo as kl_shampoo
from ._algorithms.matrix._kl_shampoo import scale_by_kl_shampoo as scale_by_kl_shampoo
from ._algorithms.matrix._kron import KronState as KronState
from ._algorithms.matrix._kron import kron as kron
from ._algorithms.matrix._kron import scale_by_kron as scale_by_kron
from ._algorithms.matrix._kron_factors import KronFactors as KronFactors
from ._algorithms.matrix._kron_whiten import KronWhitenState as KronWhitenState
from ._algorithms.matrix._kron_whiten import kron_whiten as kron_whiten
from ._algorithms.matrix._kron_whiten import scale_by_kron_whiten as scale_by_kron_whiten
from ._algorithms.matrix._lra import LRAFactors as LRAFactors
from ._algorithms.matrix._lra import LRAState as LRAState
from ._algorithms.matrix._lra import lra_whiten as lra_whiten
from ._algorithms.matrix._lra import scale_by_lra_whiten as scale_by_lra_whiten
from ._algorithms.matrix._muon import orthogonalize as orthogonalize
from ._algorithms.matrix._muon import scale_by_matrix_shape as scale_by_matrix_shape
from ._algorithms.matrix._muon import torch_muon as torch_muon
from ._algorithms.matrix._muon_adamw import MuonState as MuonState
from ._algorithms.matrix._muon_adamw import muon as muon
from ._algorithms.matrix._muon_adamw import scale_by_muon as scale_by_muon
from ._algorithms.matrix._newton_schulz import MuonDimensionNumbers as MuonDimensionNumbers
from ._algorithms.matrix._normuon import NorMuonState as NorMuonState
from ._algorithms.matrix._normuon import normuon as normuon
from ._algorithms.matrix._normuon import scale_by_normuon as scale_by_normuon
from ._algorithms.matrix._shampoo import ShampooState as ShampooState
from ._algorithms.matrix._shampoo import scale_by_shampoo as scale_by_shampoo
from ._algorithms.matrix._shampoo import shampoo as shampoo
from ._algorithms.matrix._soap import scale_by_soap as scale_by_soap
from ._algorithms.matrix._soap import soap as soap
from ._algorithms.matrix._splus import scale_by_splus as scale_by_splus
from ._algorithms.matrix._splus import splus as splus
from ._algorithms.parts._asam import asam as asam
from ._algorithms.parts._asam import scale_by_asam as scale_by_asam
from ._algorithms.parts._autoclip import AutoClipState as AutoClipState
from ._algorithms.parts._autoclip import autoclip as autoclip
from ._algorithms.parts._cautious import add_cautious_decayed_weights as add_cautious_decayed_weights
from ._algorithms.parts._cautious import cautious as cautious
from ._algorithms.parts._friendly_sam import SubtractMeanState as SubtractMeanState
from ._algorithms.parts._friendly_sam import friendly_sam as friendly_sam
from ._algorithms.parts._friendly_sam import subtract_mean as subtract_mean
from ._algorithms.parts._grokfast import GrokfastState as GrokfastState
from ._algorithms.parts._grokfast import grokfast as grokfast
from ._algorithms.parts._gsam import add_surrogate_gap as add_surrogate_gap
from ._algorithms.parts._gsam import gsam as gsam
from ._algorithms.parts._hyperball import HyperballState as HyperballState
from ._algorithms.parts._hyperball import hyperball as hyperball
from ._algorithms.parts._looksam import LookSAMState as LookSAMState
from ._algorithms.parts._looksam import looksam as looksam
from ._algorithms.parts._mars import MarsState as MarsState
from ._algorithms.parts._mars import mars as mars
from ._algorithms.parts._msam import MSAMState as MSAMState
from ._algorithms.parts._msam import msam as msam
from ._algorithms.parts._norm_growth import LimitNormGrowthState as LimitNormGrowthState
from ._algorithms.parts._norm_growth import limit_norm_growth as limit_norm_growth
from ._algorithms.parts._orthograd import orthograd as orthograd
from ._algorithms.parts._tangential import tangential as tangential
from ._algorithms.parts._zclip import ZClipState as ZClipState
from ._algorithms.parts._zclip import zclip as zclip
from ._algorithms.rate_free._cocob import COCOBState as COCOBState
from ._algorithms.rate_free._cocob import cocob as cocob
from ._algorithms.rate_free._cocob import scale_by_cocob as scale_by_cocob
from ._algorithms.rate_free._dadapt import DAdaptAdamWState as DAdaptAdamWState
from ._algorithms.rate_free._dadapt import dadapt_adamw as dadapt_adamw
from ._algorithms.rate_free._dadapt_adagrad import DAdaptAdaGradState as DAdaptAdaGradState
from ._algorithms.rate_free._dadapt_adagrad import dadapt_adagrad as dadapt_adagrad
from ._algorithms.rate_free._dadapt_lion import DAdaptLionState as DAdaptLionState
from ._algorithms.rate_free._dadapt_lion import dadapt_lion as dadapt_lion
from ._algorithms.rate_free._dadapt_sgd import DAdaptSGDState as DAdaptSGDState
from ._algorithms.rate_free._dadapt_sgd import dadapt_sgd as dadapt_sgd
from ._algorithms.rate_free._dog import DoGState as DoGState
from ._algorithms.rate_free._dog import dog as dog
from ._algorithms.rate_free._dog import scale_by_dog as scale_by_dog
from ._algorithms.rate_free._dowg import DoWGState as DoWGState
from ._algorithms.rate_free._dowg import dowg as dowg
from ._algorithms.rate_free._dowg import scale_by_dowg as scale_by_dowg
from ._algorithms.rate_free._gpa import GPAState as GPAState
from ._algorithms.rate_free._gpa import gpa as gpa
from ._algorithms.rate_free._ldog import ScaleByDistanceOverGradientsState as ScaleByDistanceOverGradientsState
from ._algorithms.rate_free._ldog import scale_by_distance_over_gradients as scale_by_distance_over_gradients
from ._algorithms.rate_free._momo import MomoAdamState as MomoAdamState
from ._algorithms.rate_free._momo import MomoState as MomoState
from ._algorithms.rate_free._momo import momo as momo
from ._algorithms.rate_free._momo import momo_adam as momo_adam
from ._algorithms.rate_free._polyak import polyak_sgd as polyak_sgd
from ._algorithms.rate_free._polyak import scale_by_polyak as scale_by_polyak
from ._algorithms.rate_free._prodigy import ProdigyState as ProdigyState
from ._algorithms.rate_free._prodigy import prodigy as prodigy
from ._algorithms.rate_free._schedule_free import ScheduleFreeState as ScheduleFreeState
from ._algorithms.rate_free._schedule_free import schedule_free as schedule_free
from ._algorithms.rate_free._schedule_free import schedule_free_adamw as schedule_free_adamw
from ._algorithms.rate_free._schedule_free import schedule_free_eval_params as schedule_free_eval_params
from ._algorithms.rate_free._schedule_free import schedule_free_sgd as schedule_free_sgd
from ._algorithms.rate_free._schedule_free_radam import schedule_free_radam as schedule_free_radam
from ._evaluation import eval_params as eval_params
from ._numerics._eigenbasis import Refined as Refined
from ._numerics._eigenbasis import eigenvectors as eigenvectors
from ._numerics._eigenbasis import refine_eigenvectors as refine_eigenvectors
from ._numerics._inverse_root import inverse_root as inverse_root
from ._numerics._linear_algebra import matrix_inverse_pth_root as matrix_inverse_pth_root
from ._numerics._linear_algebra import nnls as nnls
from ._numerics._linear_algebra import power_iteration as power_iteration
from ._numerics._newton_schulz import newton_schulz as newton_schulz
from ._numerics._newton_schulz import ns_coefficients as ns_coefficients
from ._numerics._newton_schulz import polar_express as polar_express
from ._numerics._power_iteration import spectral_norm as spectral_norm
from ._numerics._projections import projection_box as projection_box
from ._numerics._projections import projection_halfspace as projection_halfspace
from ._numerics._projections import projection_hypercube as projection_hypercube
from ._numerics._projections import projection_hyperplane as projection_hyperplane
from ._numerics._projections import projection_l1_ball as projection_l1_ball
from ._numerics._projections import projection_l1_sphere as projection_l1_sphere
from ._numerics._projections import projection_l2_ball as projection_l2_ball
from ._numerics._projections import projection_l2_sphere as projection_l2_sphere
from ._numerics._projections import projection_linf_ball as projection_linf_ball
from ._numerics._projections import projection_non_negative as projection_non_negative
from ._numerics._projections import projection_simplex as projection_simplex
from ._numerics._projections import projection_vector as projection_vector
from ._numerics._scalars import safe_increment as safe_increment
from ._numerics._scalars import safe_norm as safe_norm
from ._numerics._scalars import safe_root_mean_squares as safe_root_mean_squares
from ._numerics._scalars import scale_gradient as scale_gradient
from ._numerics._second_order import empirical_fisher_diagonal as empirical_fisher_diagonal
from ._numerics._second_order import fisher_diagonal as fisher_diagonal
from ._numerics._second_order import gauss_newton_bartlett_diagonal as gauss_newton_bartlett_diagonal
from ._numerics._second_order import hutchinson_diagonal as hutchinson_diagonal
from ._numerics._second_order import hvp as hvp
from ._quantize import Quantized as Quantized
from ._quantize import dequantize as dequantize
from ._quantize import dequantize_state as dequantize_state
from ._quantize import quantize as quantize
from ._recipe import factory as factory
from ._state_dict import load_state_dict as load_state_dict
from ._state_dict import state_dict as state_dict
from ._state_spec import LeafSpec as LeafSpec
from ._state_spec import state_spec as state_spec
from ._version import __version__ as __version__
from ._wrappers._by_rows import rows as rows
from ._wrappers._complex import SplitRealAndImaginaryArrays as SplitRealAndImaginaryArrays
from ._wrappers._complex import SplitRealAndImaginaryState as SplitRealAndImaginaryState
from ._wrappers._complex import split_real_and_imaginary as split_real_and_imaginary
from ._wrappers._conditional import ConditionallyMaskState as ConditionallyMaskState
from ._wrappers._conditional import ConditionallyTransformState as ConditionallyTransformState
from ._wrappers._conditional import ConditionFn as ConditionFn
from ._wrappers._conditional import conditionally_mask as conditionally_mask
from ._wrappers._conditional import conditionally_transform as conditionally_transform
from ._wrappers._finite import ApplyIfFiniteState as ApplyIfFiniteState
from ._wrappers._finite import apply_if_finite as apply_if_finite
from ._wrappers._flatten import flatten as flatten
from ._wrappers._freeze import freeze as freeze
from ._wrappers._freeze import selective_transform as selective_transform
from ._wrappers._graft import GraftState as GraftState
from ._wrappers._graft import graft as graft
from ._wrappers._half_precision import KahanState as KahanState
from ._wrappers._half_precision import MasterWeightsState as MasterWeightsState
from ._wrappers._half_precision import StochasticRoundingState as StochasticRoundingState
from ._wrappers._half_precision import kahan as kahan
from ._wrappers._half_precision import master_weights as master_weights
from ._wrappers._half_precision import stochastic_rounding as stochastic_rounding
from ._wrappers._hyperparams import InjectedFactory as InjectedFactory
from ._wrappers._hyperparams import InjectHyperparamsState as InjectHyperparamsState
from ._wrappers._hyperparams import StatefulSchedule as StatefulSchedule
from ._wrappers._hyperparams import inject_hyperparams as inject_hyperparams
from ._wrappers._lookahead import LookaheadParams as LookaheadParams
from ._wrappers._lookahead import LookaheadState as LookaheadState
from ._wrappers._lookahead import lookahead as lookahead
from ._wrappers._masked import MaskedNode as MaskedNode
from ._wrappers._masked import MaskedState as MaskedState
from ._wrappers._masked import masked as masked
from ._wrappers._mechanize import MechanicState as MechanicState
from ._wrappers._mechanize import mechanize as mechanize
from ._wrappers._multi_steps import MultiStepsState as MultiStepsState
from ._wrappers._multi_steps import ShouldSkipUpdateFunction as ShouldSkipUpdateFunction
from ._wrappers._multi_steps import has_updated as has_updated
from ._wrappers._multi_steps import multi_steps as multi_steps
from ._wrappers._multi_steps import skip_large_updates as skip_large_updates
from ._wrappers._multi_steps import skip_not_finite as skip_not_finite
from ._wrappers._offload import offload as offload
from ._wrappers._partition import PartitionState as PartitionState
from ._wrappers._partition import partition as partition
from ._wrappers._per_leaf import per_leaf as per_leaf
from ._wrappers._quantize_state import quantize_state as quantize_state
from ._wrappers._sam import SAMState as SAMState
from ._wrappers._sam import sam as sam
from ._wrappers._stacked import stacked as stacked
from .fused import Step as Step
from .fused import make_step as make_step
from .optim import Optimizer as Optimizer

# Several names a line from here on, by room: the index has to stay shorter than 400 lines.
# fmt: off
# isort: off
from ._algorithms.adagrad._adadelta import ScaleByAdaDeltaState as ScaleByAdaDeltaState, adadelta as adadelta
from ._algorithms.adagrad._adadelta import scale_by_adadelta as scale_by_adadelta
from ._algorithms.adagrad._adafactor import RowColState as RowColState, scale_by_row_col_rms as scale_by_row_col_rms
from ._algorithms.adagrad._adagrad import ScaleByRssState as ScaleByRssState, adagrad as adagrad
from ._algorithms.adagrad._adagrad import scale_by_rss as scale_by_rss
from ._algorithms.adagrad._came import CameState as CameState, came as came, scale_by_came as scale_by_came
from ._algorithms.adagrad._factored import FactoredState as FactoredState, adafactor as adafactor
from ._algorithms.adagrad._factored import scale_by_factored_rms as scale_by_factored_rms
from ._algorithms.adagrad._madgrad import MadgradState as MadgradState, madgrad as madgrad
from ._algorithms.adagrad._madgrad import scale_by_madgrad as scale_by_madgrad
from ._algorithms.adagrad._rmsprop import ScaleByRmsState as ScaleByRmsState, ScaleByRStdDevState as ScaleByRStdDevState
from ._algorithms.adagrad._rmsprop import rmsprop as rmsprop, scale_by_rms as scale_by_rms
from ._algorithms.adagrad._rmsprop import scale_by_stddev as scale_by_stddev
from ._algorithms.adagrad._rowwise import ScaleByRowwiseRssState as ScaleByRowwiseRssState
from ._algorithms.adagrad._rowwise import rowwise_adagrad as rowwise_adagrad
from ._algorithms.adagrad._rowwise import scale_by_rowwise_rss as scale_by_rowwise_rss
from ._algorithms.adagrad._sm3 import ScaleBySM3State as ScaleBySM3State, scale_by_sm3 as scale_by_sm3, sm3 as sm3
from ._algorithms.adam._acprop import acprop as acprop, scale_by_acprop as scale_by_acprop
from ._algorithms.adam._adabelief import ScaleByBeliefState as ScaleByBeliefState, adabelief as adabelief
from ._algorithms.adam._adabelief import scale_by_belief as scale_by_belief
from ._algorithms.adam._adahessian import ScaleByAdaHessianState as ScaleByAdaHessianState, adahessian as adahessian
from ._algorithms.adam._adahessian import scale_by_adahessian as scale_by_adahessian
from ._algorithms.adam._adam import ScaleByAdamState as ScaleByAdamState, adam as adam, adamw as adamw, nadam as nadam
from ._algorithms.adam._adam import nadamw as nadamw, scale_by_adam as scale_by_adam
from ._algorithms.adam._adam_atan2 import adam_atan2 as adam_atan2, scale_by_adam_atan2 as scale_by_adam_atan2
from ._algorithms.adam._adam_mini import ScaleByAdamMiniState as ScaleByAdamMiniState, adam_mini as adam_mini
from ._algorithms.adam._adam_mini import adam_mini_blocks as adam_mini_blocks, scale_by_adam_mini as scale_by_adam_mini
from ._algorithms.adam._adamax import adamax as adamax, adamaxw as adamaxw, scale_by_adamax as scale_by_adamax
from ._algorithms.adam._adamp import adamp as adamp
from ._algorithms.adam._adan import ScaleByAdanState as ScaleByAdanState, adan as adan, scale_by_adan as scale_by_adan
from ._algorithms.adam._ademamix import ScaleByAdemamixState as ScaleByAdemamixState, ademamix as ademamix
from ._algorithms.adam._ademamix import scale_by_ademamix as scale_by_ademamix
from ._algorithms.adam._adopt import adopt as adopt, scale_by_adopt as scale_by_adopt
from ._algorithms.adam._amsgrad import ScaleByAmsgradState as ScaleByAmsgradState, amsgrad as amsgrad
from ._algorithms.adam._amsgrad import scale_by_amsgrad as scale_by_amsgrad
from ._algorithms.adam._grams import grams as grams, scale_by_grams as scale_by_grams
from ._algorithms.adam._lamb import lamb as lamb
from ._algorithms.adam._laprop import laprop as laprop, scale_by_laprop as scale_by_laprop
from ._algorithms.adam._nadam import ScaleByNadamState as ScaleByNadamState, scale_by_nadam as scale_by_nadam
from ._algorithms.adam._novograd import ScaleByNovogradState as ScaleByNovogradState, novograd as novograd
from ._algorithms.adam._novograd import scale_by_novograd as scale_by_novograd
from ._algorithms.adam._qhadam import qhadam as qhadam, scale_by_qhadam as scale_by_qhadam
from ._algorithms.adam._radam import radam as radam, scale_by_radam as scale_by_radam
from ._algorithms.adam._simplified_ademamix import ScaleBySimplifiedAdEMAMixState as ScaleBySimplifiedAdEMAMixState
from ._algorithms.adam._simplified_ademamix import scale_by_simplified_ademamix as scale_by_simplified_ademamix
from ._algorithms.adam._simplified_ademamix import simplified_ademamix as simplified_ademamix
from ._algorithms.adam._sophia import HutchinsonState as HutchinsonState, SophiaState as SophiaState
from ._algorithms.adam._sophia import hutchinson_estimator_diag_hessian as hutchinson_estimator_diag_hessian
from ._algorithms.adam._sophia import scale_by_sophia as scale_by_sophia, sophia as sophia
from ._algorithms.adam._sophia_g import SophiaGState as SophiaGState, scale_by_sophia_g as scale_by_sophia_g
from ._algorithms.adam._sophia_g import sophia_g as sophia_g
from ._algorithms.adam._spam import ClipSpikesState as ClipSpikesState, clip_spikes as clip_spikes
from ._algorithms.adam._spam import scale_by_spam as scale_by_spam, spam as spam
from ._algorithms.adam._sparse_adam import scale_by_sparse_adam as scale_by_sparse_adam
from ._algorithms.adam._stable_adamw import scale_by_stable_adam as scale_by_stable_adam, stable_adamw as stable_adamw
from ._algorithms.adam._yogi import scale_by_yogi as scale_by_yogi, yogi as yogi
from ._algorithms.low_rank._fira import apollo as apollo, fira as fira, scale_by_apollo as scale_by_apollo
from ._algorithms.low_rank._fira import scale_by_fira as scale_by_fira
from ._algorithms.low_rank._galore import galore as galore, galore_adamw as galore_adamw, project as project
from ._algorithms.low_rank._galore import scale_by_galore as scale_by_galore
from ._algorithms.low_rank._space import LowRankState as LowRankState
from ._algorithms.matrix._scion import scale_by_scion as scale_by_scion
from ._algorithms.matrix._scion import scale_by_lmo as scale_by_lmo, scion as scion
from ._algorithms.momentum._aggmo import AggMoState as AggMoState, aggmo as aggmo, scale_by_aggmo as scale_by_aggmo
from ._algorithms.momentum._asgd import ASGDState as ASGDState, asgd as asgd
from ._algorithms.momentum._dpsgd import DifferentiallyPrivateAggregateState as DifferentiallyPrivateAggregateState
from ._algorithms.momentum._dpsgd import differentially_private_aggregate as differentially_private_aggregate
from ._algorithms.momentum._dpsgd import dpsgd as dpsgd
from ._algorithms.momentum._fromage import fromage as fromage
from ._algorithms.momentum._lars import lars as lars
from ._algorithms.momentum._noisy_sgd import noisy_sgd as noisy_sgd
from ._algorithms.momentum._optimistic import ScaleByOptimisticGradientState as ScaleByOptimisticGradientState
from ._algorithms.momentum._optimistic import optimistic_adam as optimistic_adam
from ._algorithms.momentum._optimistic import optimistic_adam_v2 as optimistic_adam_v2
from ._algorithms.momentum._optimistic import optimistic_gradient_descent as optimistic_gradient_descent
from ._algorithms.momentum._optimistic import scale_by_optimistic_gradient as scale_by_optimistic_gradient
from ._algorithms.momentum._qhm import qhm as qhm, scale_by_qhm as scale_by_qhm
from ._algorithms.momentum._sgd import sgd as sgd
from ._algorithms.momentum._sgdp import sgdp as sgdp
from ._algorithms.quasi_newton._lbfgs import MinimizeByLbfgsState as MinimizeByLbfgsState
from ._algorithms.quasi_newton._lbfgs import minimize_by_lbfgs as minimize_by_lbfgs
from ._algorithms.quasi_newton._lbfgs_chain import ScaleByLBFGSState as ScaleByLBFGSState, lbfgs as lbfgs
from ._algorithms.quasi_newton._lbfgs_chain import scale_by_lbfgs as scale_by_lbfgs
from ._algorithms.sign._lion import ScaleByLionState as ScaleByLionState, lion as lion, scale_by_lion as scale_by_lion
from ._algorithms.sign._rprop import ScaleByRpropState as ScaleByRpropState, rprop as rprop
from ._algorithms.sign._rprop import scale_by_rprop as scale_by_rprop
from ._algorithms.sign._sign_sgd import scale_by_sign as scale_by_sign, sign_sgd as sign_sgd, signum as signum
from ._algorithms.sign._tiger import tiger as tiger
from ._base import EmptyState as EmptyState, EvalParamsFn as EvalParamsFn
from ._base import GradientTransformation as GradientTransformation, InitFn as InitFn, UpdateFn as UpdateFn
from ._base import apply_updates as apply_updates, chain as chain, identity as identity
from ._base import init_empty_state as init_empty_state
from ._base import named_chain as named_chain, set_to_zero as set_to_zero
from ._base import stateless as stateless, stateless_with_tree_map as stateless_with_tree_map
from ._schedules._annealing import cosine_annealing_lr as cosine_annealing_lr
from ._schedules._annealing import cosine_annealing_warm_restarts as cosine_annealing_warm_restarts, swa_lr as swa_lr
from ._schedules._cosine import cosine_decay_schedule as cosine_decay_schedule
from ._schedules._cosine import warmup_cosine_decay_schedule as warmup_cosine_decay_schedule
from ._schedules._cycles import cyclic_lr as cyclic_lr, one_cycle_lr as one_cycle_lr
from ._schedules._decay import exponential_lr as exponential_lr, linear_lr as linear_lr, polynomial_lr as polynomial_lr
from ._schedules._exponential import exponential_decay as exponential_decay
from ._schedules._exponential import precond_update_prob_schedule as precond_update_prob_schedule
from ._schedules._interpolated import cosine_onecycle_schedule as cosine_onecycle_schedule
from ._schedules._interpolated import linear_onecycle_schedule as linear_onecycle_schedule
from ._schedules._interpolated import piecewise_interpolate_schedule as piecewise_interpolate_schedule
from ._schedules._join import join_schedules as join_schedules
from ._schedules._join import piecewise_constant_schedule as piecewise_constant_schedule
from ._schedules._polynomial import constant_schedule as constant_schedule, linear_schedule as linear_schedule
from ._schedules._polynomial import polynomial_schedule as polynomial_schedule
from ._schedules._products import chained_schedules as chained_schedules, lambda_lr as lambda_lr
from ._schedules._products import multiplicative_lr as multiplicative_lr
from ._schedules._steps import constant_lr as constant_lr, multi_step_lr as multi_step_lr, step_lr as step_lr
from ._schedules._warmup import sgdr_schedule as sgdr_schedule, trapezoidal_schedule as trapezoidal_schedule
from ._schedules._warmup import warmup_constant_schedule as warmup_constant_schedule
from ._schedules._warmup import warmup_exponential_decay_schedule as warmup_exponential_decay_schedule
from ._schedules._warmup import warmup_inverse_sqrt_schedule as warmup_inverse_sqrt_schedule
from ._schedules._warmup import warmup_stable_decay_schedule as warmup_stable_decay_schedule
from ._seeing._describe import DescribedTransform as DescribedTransform, Description as Description
from ._seeing._describe import describe as describe
from ._seeing._metrics import metrics as metrics
from ._seeing._plot import plot_path as plot_path, plot_schedule as plot_schedule
from ._transforms._apply_every import ApplyEvery as ApplyEvery, apply_every as apply_every
from ._transforms._averaging import ParamsEmaState as ParamsEmaState, ParamsSwaState as ParamsSwaState
from ._transforms._averaging import params_ema as params_ema, params_swa as params_swa
from ._transforms._block import scale_by_param_block_norm as scale_by_param_block_norm
from ._transforms._block import scale_by_param_block_rms as scale_by_param_block_rms
from ._transforms._clipping import clip as clip, clip_by_block_rms as clip_by_block_rms
from ._transforms._clipping import clip_by_global_norm as clip_by_global_norm
from ._transforms._constraints import ZeroNansState as ZeroNansState, keep_params_nonnegative as keep_params_nonnegative
from ._transforms._constraints import zero_nans as zero_nans
from ._transforms._dampening import DampenedTraceState as DampenedTraceState, dampened_trace as dampened_trace
from ._transforms._decay import WeightDecaySchedule as WeightDecaySchedule, add_decayed_weights as add_decayed_weights
from ._transforms._decay_kinds import DecayTowardStartState as DecayTowardStartState
from ._transforms._decay_kinds import add_corrected_decayed_weights as add_corrected_decayed_weights
from ._transforms._decay_kinds import add_decay_toward_start as add_decay_toward_start
from ._transforms._decay_kinds import add_independent_decayed_weights as add_independent_decayed_weights
from ._transforms._decay_kinds import decay_after_step as decay_after_step, decay_proximally as decay_proximally
from ._transforms._keep_in import keep_params_in as keep_params_in
from ._transforms._linesearch import BacktrackingLinesearchInfo as BacktrackingLinesearchInfo
from ._transforms._linesearch import ScaleByBacktrackingLinesearchState as ScaleByBacktrackingLinesearchState
from ._transforms._linesearch import scale_by_backtracking_linesearch as scale_by_backtracking_linesearch
from ._transforms._linesearch import value_and_grad_from_state as value_and_grad_from_state
from ._transforms._momentum import EmaState as EmaState, TraceState as TraceState, ema as ema, trace as trace
from ._transforms._monitor import MonitorState as MonitorState, SnapshotState as SnapshotState
from ._transforms._monitor import measure_with_ema as measure_with_ema, monitor as monitor, snapshot as snapshot
from ._transforms._noise import AddNoiseState as AddNoiseState, add_noise as add_noise
from ._transforms._normalize import centralize as centralize, normalize as normalize
from ._transforms._normalize import normalize_by_update_norm as normalize_by_update_norm
from ._transforms._plateau import DetectPlateauState as DetectPlateauState, PlateauDetector as PlateauDetector
from ._transforms._plateau import PlateauState as PlateauState, detect_plateau as detect_plateau, plateau as plateau
from ._transforms._power_ema import PowerEmaState as PowerEmaState, power_ema as power_ema
from ._transforms._qk_clip import AttentionRows as AttentionRows
from ._transforms._qk_clip import qk_clip as qk_clip
from ._transforms._rate import ScaleByScheduleState as ScaleByScheduleState, scale as scale
from ._transforms._rate import scale_by_learning_rate as scale_by_learning_rate, scale_by_schedule as scale_by_schedule
from ._transforms._targets import incremental_update as incremental_update, periodic_update as periodic_update
from ._transforms._trust_ratio import scale_by_trust_ratio as scale_by_trust_ratio
from ._transforms._unitwise import adaptive_grad_clip as adaptive_grad_clip
from ._transforms._unitwise import per_example_global_norm_clip as per_example_global_norm_clip
from ._transforms._unitwise import per_example_layer_norm_clip as per_example_layer_norm_clip
from ._transforms._unitwise import unitwise_clip as unitwise_clip, unitwise_norm as unitwise_norm
from ._transforms._zoom import ScaleByZoomLinesearchState as ScaleByZoomLinesearchState
from ._transforms._zoom import ZoomLinesearchInfo as ZoomLinesearchInfo
from ._transforms._zoom import scale_by_zoom_linesearch as scale_by_zoom_linesearch
from ._typing import Assign as Assign, Mask as Mask, Params as Params, Scalar as Scalar
from ._typing import ScalarOrSchedule as ScalarOrSchedule, Schedule as Schedule, ScheduleFn as ScheduleFn
from ._typing import State as State, Tree as Tree
from ._typing import Updates as Updates
from . import _states as _states  # last: it looks at all modules
