#include "CVictims.h"
