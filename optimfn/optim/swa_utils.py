"""Weight averaging as torch.optim has it, for modules; `params_ema` and `params_swa` are its pure forms."""

from torch.optim.swa_utils import SWALR as SWALR
from torch.optim.swa_utils import AveragedModel as AveragedModel
from torch.optim.swa_utils import get_ema_avg_fn as get_ema_avg_fn
from torch.optim.swa_utils import get_ema_multi_avg_fn as get_ema_multi_avg_fn
from torch.optim.swa_utils import get_swa_avg_fn as get_swa_avg_fn
from torch.optim.swa_utils import get_swa_multi_avg_fn as get_swa_multi_avg_fn
from torch.optim.swa_utils import update_bn as update_bn
