//! Functions that programs look for and that no simulated device offers: they exist, and say so.

use super::enter::driver;
use crate::code::Code;
use std::ffi::c_void;

driver! {
    cuImportExternalMemory(_memory: *mut u64, _description: *const c_void) = Initialized, |state, caller| {
        Err(Code::NOT_SUPPORTED)
    };

    cuExternalMemoryGetMappedBuffer(_pointer: *mut u64, _memory: u64, _description: *const c_void) = Initialized,
    |state, caller| Err(Code::NOT_SUPPORTED);

    cuDestroyExternalMemory(_memory: u64) = Initialized, |state, caller| Err(Code::NOT_SUPPORTED);

    cuOccupancyMaxActiveClusters(_clusters: *mut i32, _function: u64, _config: *const c_void) = Initialized,
    |state, caller| Err(Code::NOT_SUPPORTED);

    cuOccupancyMaxPotentialClusterSize(_size: *mut i32, _function: u64, _config: *const c_void) = Initialized,
    |state, caller| Err(Code::NOT_SUPPORTED);

    cuMemExportToShareableHandle(_shared: *mut c_void, _handle: u64, _kind: i32, _flags: u64) = Initialized,
    |state, caller| Err(Code::NOT_SUPPORTED);

    cuMemImportFromShareableHandle(_handle: *mut u64, _shared: *mut c_void, _kind: i32) = Initialized,
    |state, caller| Err(Code::NOT_SUPPORTED);

    cuIpcGetMemHandle(_handle: *mut c_void, _pointer: u64) = Initialized, |state, caller| Err(Code::NOT_SUPPORTED);

    cuIpcGetEventHandle(_handle: *mut c_void, _event: u64) = Initialized, |state, caller| Err(Code::NOT_SUPPORTED);
}

/// Functions that answer and do nothing. Their arguments are not read, so that they have none here: the C calling
/// convention leaves arguments to the caller.
macro_rules! absent {
    ($($($name:ident)+;)*) => {
        driver! {
            $($($name() = Initialized, |state, caller| Err(Code::NOT_SUPPORTED);)+)*
        }
    };
}

// cudarc panics where a symbol is missing; a program that asks for one of these gets an error that it can handle.
absent! {
    // Rectangles and volumes.
    cuMemAllocPitch_v2 cuMemcpy2D_v2 cuMemcpy2DUnaligned_v2 cuMemcpy2DAsync_v2 cuMemcpy3D_v2
    cuMemcpy3DAsync_v2 cuMemcpy3DPeer cuMemcpy3DPeerAsync cuMemsetD2D8_v2 cuMemsetD2D16_v2
    cuMemsetD2D32_v2 cuMemsetD2D8Async cuMemsetD2D16Async cuMemsetD2D32Async;

    // Copies in batches.
    cuMemcpyBatchAsync cuMemcpyBatchAsync_v2 cuMemcpy3DBatchAsync cuMemcpy3DBatchAsync_v2
    cuMemPrefetchBatchAsync cuMemDiscardBatchAsync cuMemDiscardAndPrefetchBatchAsync
    cuMemBatchDecompressAsync;

    // Streams that wait for memory or take attributes, and callbacks older than `cuLaunchHostFunc`.
    cuStreamAddCallback cuStreamBatchMemOp_v2 cuStreamWaitValue32_v2 cuStreamWaitValue64_v2
    cuStreamWriteValue32_v2 cuStreamWriteValue64_v2 cuStreamGetAttribute cuStreamSetAttribute
    cuStreamCopyAttributes cuStreamBeginCaptureToGraph cuStreamUpdateCaptureDependencies
    cuStreamUpdateCaptureDependencies_v2 cuCtxRecordEvent cuCtxWaitEvent;

    // Libraries: modules of no context.
    cuLibraryLoadData cuLibraryLoadFromFile cuLibraryUnload cuLibraryGetKernel cuLibraryGetKernelCount
    cuLibraryEnumerateKernels cuLibraryGetModule cuLibraryGetGlobal cuLibraryGetManaged
    cuLibraryGetUnifiedFunction cuKernelGetAttribute cuKernelGetFunction cuKernelGetLibrary
    cuKernelGetName cuKernelGetParamInfo cuKernelSetAttribute cuKernelSetCacheConfig
    cuModuleLoadFatBinary cuModuleEnumerateFunctions cuModuleGetFunctionCount cuFuncGetModule
    cuFuncGetName cuFuncIsLoaded cuFuncLoad cuLinkCreate_v2 cuLinkAddData_v2 cuLinkAddFile_v2
    cuLinkComplete cuLinkDestroy;

    // Graphs that are built or changed by hand.
    cuGraphCreate cuGraphClone cuGraphExecUpdate_v2 cuGraphExecUpdate cuGraphAddNode cuGraphAddNode_v2
    cuGraphAddKernelNode_v2 cuGraphAddMemcpyNode cuGraphAddMemsetNode cuGraphAddHostNode
    cuGraphAddEmptyNode cuGraphAddChildGraphNode cuGraphAddEventRecordNode cuGraphAddEventWaitNode
    cuGraphAddMemAllocNode cuGraphAddMemFreeNode cuGraphAddDependencies cuGraphAddDependencies_v2
    cuGraphRemoveDependencies cuGraphRemoveDependencies_v2 cuGraphDestroyNode cuGraphGetEdges
    cuGraphGetEdges_v2 cuGraphGetRootNodes cuGraphNodeGetDependencies cuGraphNodeGetDependencies_v2
    cuGraphNodeGetDependentNodes cuGraphNodeGetDependentNodes_v2 cuGraphNodeFindInClone
    cuGraphNodeGetEnabled cuGraphNodeSetEnabled cuGraphNodeSetParams cuGraphExecNodeSetParams
    cuGraphKernelNodeGetParams_v2 cuGraphKernelNodeSetParams_v2 cuGraphExecKernelNodeSetParams_v2
    cuGraphMemcpyNodeGetParams cuGraphMemcpyNodeSetParams cuGraphExecMemcpyNodeSetParams
    cuGraphMemsetNodeGetParams cuGraphMemsetNodeSetParams cuGraphExecMemsetNodeSetParams
    cuGraphHostNodeGetParams cuGraphHostNodeSetParams cuGraphExecHostNodeSetParams
    cuGraphExecChildGraphNodeSetParams cuGraphExecEventRecordNodeSetEvent
    cuGraphExecEventWaitNodeSetEvent cuGraphExecGetFlags cuGraphDebugDotPrint cuUserObjectCreate
    cuUserObjectRetain cuUserObjectRelease cuGraphRetainUserObject cuGraphReleaseUserObject
    cuDeviceGetGraphMemAttribute cuDeviceSetGraphMemAttribute cuDeviceGraphMemTrim;

    // Memory shared with others, and attributes of ranges.
    cuMemPoolExportPointer cuMemPoolImportPointer cuMemPoolExportToShareableHandle
    cuMemPoolImportFromShareableHandle cuMemGetHandleForAddressRange cuMemRangeGetAttribute
    cuMemRangeGetAttributes cuPointerSetAttribute cuIpcOpenMemHandle_v2 cuIpcCloseMemHandle
    cuIpcOpenEventHandle cuImportExternalSemaphore cuSignalExternalSemaphoresAsync
    cuWaitExternalSemaphoresAsync cuDestroyExternalSemaphore cuMulticastCreate cuMulticastAddDevice
    cuMulticastBindMem cuMulticastUnbind cuMulticastGetGranularity;

    // Arrays, textures, tensor maps.
    cuArrayCreate_v2 cuArrayDestroy cuArray3DCreate_v2 cuMipmappedArrayCreate cuTexObjectCreate
    cuTexObjectDestroy cuSurfObjectCreate cuSurfObjectDestroy cuTensorMapEncodeTiled
    cuTensorMapEncodeIm2col cuTensorMapReplaceAddress;

    // Banks of shared memory, the second-level cache, names of devices.
    cuCtxGetSharedMemConfig cuCtxSetSharedMemConfig cuFuncSetSharedMemConfig cuCtxResetPersistingL2Cache
    cuDeviceGetByPCIBusId cuDeviceGetLuid cuDeviceGetExecAffinitySupport;
}
